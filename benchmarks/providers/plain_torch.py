"""PyTorch without a library: naive, compiled, and its own linear_cross_entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.providers.contract import Provider, Workload, anywhere, dpo, no_softcap


def naive(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    """What one writes without a library: all logits, in fp32 for the softmax, masked after."""
    return _naive(case.hidden, case.weight, case.labels, case.reference, case.softcap)


def _naive(hidden: Tensor, weight: Tensor, labels: Tensor, reference: Tensor, softcap: float | None) -> Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if logits.dtype != torch.float64:
        logits = logits.float()
    mask = labels != -100
    logp = torch.log_softmax(logits, -1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return dpo((logp * mask).sum(1), reference)


def _scored(
    hidden: Tensor, weight: Tensor, rows: Tensor, labels: Tensor, segments: Tensor, reference: Tensor,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    logits = hidden.flatten(0, 1)[rows] @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = torch.log_softmax(logits.float(), -1).gather(1, labels[:, None])[:, 0]
    return dpo(logp.new_zeros(reference.shape).index_add(0, segments, logp), reference)


_compiled, _compiled_scored = torch.compile(_naive), torch.compile(_scored)


def compiled(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    return _compiled(case.hidden, case.weight, case.labels, case.reference, case.softcap)


def compiled_scored(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    """For who also thinks of leaving prompts and padding out."""
    batch = case.batch
    return _compiled_scored(
        case.hidden, case.weight, batch.rows, batch.labels, batch.segments, case.reference, case.softcap
    )


def linear_cross_entropy(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    return _linear_cross_entropy(case, None)


def linear_cross_entropy_chunked(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    return _linear_cross_entropy(case, torch.nn.LinearCrossEntropyOptions())


def _linear_cross_entropy(case: Workload, options: Any) -> Tensor:
    nll = torch.nn.functional.linear_cross_entropy(
        case.hidden.flatten(0, 1), case.weight, case.labels.flatten(), reduction="none", options=options
    )
    return dpo(-nll.float().view(case.labels.shape).sum(1), case.reference)


def _too_old(case: Workload) -> str | None:
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return f"torch has linear_cross_entropy from 2.13 on, this is {torch.__version__}"
    return no_softcap(case, "torch's linear_cross_entropy")


PROVIDERS = {
    "naive": Provider(loss=naive, missing=anywhere),
    "torch.compile": Provider(loss=compiled, missing=anywhere, compiled=True, note="naive, compiled"),
    "torch.compile-scored": Provider(
        loss=compiled_scored, missing=anywhere, compiled=True, note="the same on the scored positions alone"
    ),
    "torch-linear-ce": Provider(
        loss=linear_cross_entropy, missing=_too_old,
        note="torch.nn.functional.linear_cross_entropy without options: all logits, in the input's dtype",
    ),
    "torch-linear-ce-chunked": Provider(
        loss=linear_cross_entropy_chunked, missing=_too_old, note="the same with LinearCrossEntropyOptions()"
    ),
}  # fmt: skip
