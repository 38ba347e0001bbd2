"""The front door: preference losses straight from hidden states and the head's weight, without the logits.

hidden [..., D], weight [V, D], batch -> token log-probs -> sequence log-probs -> objective -> loss, dh, dw
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from expo_kernels.inputs import check_stats, make_evaluation, make_problem
from expo_kernels.layout import from_padded, with_declared_weights
from expo_kernels.objectives import ExpoComp, ExpoReg
from expo_kernels.ops.preference import preference
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
    divisor     what the sum of the groups' losses is divided by; default: the batch's count of active groups.
                Divisors(...) sets those of anchors and tokens as well
    stats       "entropy", "is_argmax": per token, in LossOutput.stats

    A group with an empty sequence is inactive: loss 0, coefficient 0, not in the default divisor, counted in `empty`.
    A hidden value that is not finite makes its group's loss and dh NaN, hence the scalar loss and dw too.
    """
    where = "preference_loss"
    check_stats(where, stats)
    problem = make_problem(where, hidden, weight, batch, head, execution)
    evaluation = make_evaluation(where, objective, problem.batch, reference, columns, divisor)
    problem = problem.with_batch(with_declared_weights(where, objective, problem.batch))
    return preference(problem, evaluation, tuple(stats))


def expo_loss(
    hidden: Tensor,
    weight: Tensor,
    batch: Batch | Tensor,
    *,
    variant: str,
    lam: float,
    logp_reduction: str = "sum",
    temperature: float = 1.0,
    reference: Tensor | None = None,
    columns: Mapping[str, Tensor] | None = None,
    divisor: float | Tensor | Divisors | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    backend: str = "auto",
    workspace_bytes: int | None = None,
    sparsity: object | None = None,
    stats: tuple[str, ...] = (),
) -> LossOutput:
    """EXPO (arXiv 2506.07492), everything spelled out: preference_loss with ExpoReg or ExpoComp.

    variant "reg" needs reference [S] and lam in [0, 1]; "comp" needs none and lam > 0, and takes its unsupervised term
    from the batch's anchors where it has some, else from the pairs.
    """
    if isinstance(batch, Tensor):
        batch = from_padded(batch)
    objective: Objective
    if variant == "reg":
        objective = ExpoReg(lam=lam, logp_reduction=logp_reduction, temperature=temperature)
    elif variant == "comp":
        samples = "anchors" if batch.host.anchors else "pair"
        objective = ExpoComp(lam=lam, samples=samples, logp_reduction=logp_reduction, temperature=temperature)
    else:
        raise ValueError(f'expo_loss: want variant "reg" or "comp", got {variant!r}')
    return preference_loss(
        hidden,
        weight,
        batch,
        objective,
        reference=reference,
        columns=columns,
        divisor=divisor,
        head=HeadOptions(bias=bias, softcap=softcap, logit_scale=logit_scale),
        execution=Execution(backend=backend, workspace_bytes=workspace_bytes, sparsity=sparsity),
        stats=stats,
    )
