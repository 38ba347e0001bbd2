"""For an objective of one's own: are its coefficients the gradient of its loss?"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from expo_kernels.types import Counts, ForwardOnly, Objective, SequenceLogprobs, Terms


def random_inputs(objective: Objective, groups: int = 9, scale: float = 3.0, seed: int = 0) -> SequenceLogprobs:
    """Everything the objective declares, in float64: sums of log-probs of up to 30 tokens at `scale` nats each, and a
    reference off by that much too. Columns are positive, or zeros and ones where the objective refuses that."""
    random = torch.Generator().manual_seed(seed)
    needs = objective.needs
    K = needs.roles or 3

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    lengths = torch.randint(1, 30, (K, groups), generator=random).double()
    policy = -scale * lengths * normal(K, groups).abs()
    reference = policy + (1.0 + scale) * normal(*((2,) if needs.several_references else ()), K, groups)
    shapes = {**dict.fromkeys(needs.columns, (groups,)), **dict.fromkeys(needs.sequence_columns, (K, groups))}
    columns = {name: normal(*shape).abs() for name, shape in shapes.items()}
    if not _takes(objective, columns):  # then marks
        columns = {name: (column > 0.6).double() for name, column in columns.items()}
    return SequenceLogprobs(
        policy=policy.requires_grad_(),
        lengths=lengths,
        reference=reference if needs.reference else None,
        columns=columns,
        divisors=Counts(groups=groups, anchors=1, tokens=float(lengths[0].sum())),
        active=torch.ones(groups, dtype=torch.bool),
        forward_only=ForwardOnly(normal(5), normal(5), torch.ones(5, dtype=torch.bool)) if needs.forward_only else None,
    )


def _takes(objective: Objective, columns: Mapping[str, torch.Tensor]) -> bool:
    try:
        getattr(objective, "check_columns", lambda columns: None)(columns)
    except ValueError:
        return False
    return True


def check_objective(objective: Objective) -> None:
    """Raises ValueError where the closed form differs from autograd's gradient of the loss, at margins up to 1e4 nats.

    Autograd's derivative of the logistic function, s (1 - s), loses what is below eps, which a closed form need not:
    hence the absolute allowance of 4e-16.
    """
    for scale in (0.01, 0.1, 3.0, 300.0):
        for seed in range(3):
            logps = random_inputs(objective, scale=scale, seed=seed)
            terms = objective(logps)
            if not isinstance(terms, Terms):
                raise TypeError(f"check_objective: want Terms from {objective}, got {type(terms).__name__}")
            terms.check(f"check_objective: {objective}", *logps.policy.shape)
            if not terms.loss.requires_grad:
                raise ValueError(f"check_objective: {objective} has a loss that autograd cannot differentiate")
            if not bool(terms.loss.isfinite().all()):
                raise ValueError(f"check_objective: {objective} has a loss that is not finite at {scale} nats a token")
            (exact,) = torch.autograd.grad(terms.loss.sum(), logps.policy)
            wrong = ~torch.isclose(terms.coefficients, exact, rtol=1e-9, atol=4e-16)
            if bool(wrong.any()):
                raise ValueError(
                    f"check_objective: {objective} has the coefficient {terms.coefficients[wrong][0].item()} where its "
                    f"loss has the derivative {exact[wrong][0].item()}, at {scale} nats a token"
                )
