"""The front door: preference losses straight from hidden states and the head's weight, without the logits.

hidden [..., D], weight [V, D], batch -> token log-probs -> sequence log-probs -> objective -> loss, dh, dw
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from expo_kernels.inputs import as_batch, check_stats, make_evaluation, make_problem
from expo_kernels.layout import with_declared_weights
from expo_kernels.objectives import ExpoComp, ExpoReg
from expo_kernels.ops.preference import preference
from expo_kernels.sparsity import Sparsity
from expo_kernels.types import Batch, Divisors, Execution, HeadOptions, LossOutput, Objective

__all__ = ["expo_loss", "preference_loss"]


def preference_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch | Tensor,
    objective: Objective,
    *,
    reference: Tensor | None = None,
    columns: Mapping[str, Tensor] | None = None,
    divisor: float | Tensor | Divisors | None = None,
    head: HeadOptions = HeadOptions(),
    execution: Execution = Execution(),
    stats: tuple[str, ...] = (),
) -> LossOutput:
    """The loss of any objective, differentiable in hidden, weight and head.bias; dh and dw are made in forward.

    hidden      [2P, T, D] for padded labels (chosen half first), [M, D] or [1, M, D] for packed ones
    weight      [V, D], the dtype of hidden (or autocast's business)
    batch       a Batch of expo_kernels.layout, or padded labels [2P, T]: labels[i, t] is the token that hidden[i, t]
                predicts, -100 is not scored (labels on a device cost one synchronisation)
    reference   [S] or [R, S] summed log-probs, where the objective needs them
    columns     {name: [P]} (or [K * P]), exactly those that the objective declares
    divisor     what the sum of the groups' losses is divided by; default: the batch's count of active groups (tokens
                for an objective that averages over those). Divisors(...) where the loss has anchors or two means
    stats       "entropy", "is_argmax": per token, in LossOutput.stats

    A group with an empty sequence is inactive: loss 0, coefficient 0, not in the default divisor, counted in `empty`.
    A hidden value that is not finite makes its group's loss and dh NaN, hence the scalar loss and dw too.
    """
    where = "preference_loss"
    batch = as_batch(where, batch, roles=2)
    return _loss(where, hidden, weight, batch, objective, reference, columns, divisor, head, execution, stats)


def expo_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch | Tensor,
    *,
    variant: str,
    lam: float,
    logp_reduction: str = "sum",
    temperature: float = 1.0,
    offset: float = 0.0,
    reference: Tensor | None = None,
    columns: Mapping[str, Tensor] | None = None,
    divisor: float | Tensor | Divisors | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    backend: str = "auto",
    workspace_bytes: int | None = None,
    sparsity: Sparsity | None = None,
    stats: tuple[str, ...] = (),
    samples: str | None = None,
) -> LossOutput:
    """EXPO (arXiv 2506.07492), everything spelled out: preference_loss with ExpoReg or ExpoComp.

    variant "reg" needs reference [S] and lam in [0, 1]; "comp" needs none and lam > 0, and takes its unsupervised term
    from `samples`: "anchors", "pair", or None, which means anchors where the batch has some or the divisor counts some
    (a micro-batch without any), else the pair.
    """
    batch = as_batch("expo_loss", batch, roles=2)
    objective: Objective
    if variant == "reg":
        if samples is not None:
            raise ValueError(f'expo_loss: want samples for variant "comp" only, got {samples!r} for "reg"')
        objective = ExpoReg(lam=lam, logp_reduction=logp_reduction, temperature=temperature, offset=offset)
    elif variant == "comp":
        counted = isinstance(divisor, Divisors) and divisor.anchors is not None
        samples = samples or ("anchors" if batch.host.anchors or counted else "pair")
        objective = ExpoComp(
            lam=lam, samples=samples, logp_reduction=logp_reduction, temperature=temperature, offset=offset
        )
    else:
        raise ValueError(f'expo_loss: want variant "reg" or "comp", got {variant!r}')
    head = HeadOptions(bias=bias, softcap=softcap, logit_scale=logit_scale)
    execution = Execution(backend=backend, workspace_bytes=workspace_bytes, sparsity=sparsity)
    return _loss("expo_loss", hidden, weight, batch, objective, reference, columns, divisor, head, execution, stats)


def _loss(
    where: str, hidden: Tensor, weight: Tensor, batch: Batch, objective: Objective, reference: Tensor | None,
    columns: Mapping[str, Tensor] | None, divisor: float | Tensor | Divisors | None, head: HeadOptions,
    execution: Execution, stats: tuple[str, ...],
) -> LossOutput:  # fmt: skip
    check_stats(where, stats)
    problem = make_problem(where, hidden, weight, batch, head, execution)
    evaluation = make_evaluation(where, objective, batch, reference, columns, divisor)
    problem = problem.with_batch(with_declared_weights(objective, batch, where))
    return preference(problem, evaluation, tuple(stats))
