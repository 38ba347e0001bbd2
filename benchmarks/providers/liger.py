"""Liger: its chunked preference loss, its scaled and its fused linear cross-entropy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.providers.contract import BETA, Provider, Workload, dpo, needs_cuda, no_softcap, not_importable


def preference(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    return GivenReference.apply(case.hidden, case.weight, case.labels, case.reference)


class GivenReference(torch.autograd.Function):
    """LigerFusedLinearDPOLoss for reference log-probs that are given as numbers.

    Liger's own class takes the reference as hidden states and a head, and would multiply those as well. So this goes
    through the pairs as it does (a pair a chunk, compiled, gradients made in forward and added up in the weight's
    dtype) by Liger's own function for a chunk and its own DPO; tests/test_bench_providers.py compares the two.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        wanted = tuple(i for i, x in enumerate((hidden, weight)) if x.requires_grad)
        chunk = _compiled_chunk(wanted)
        P = len(labels) // 2
        torch._dynamo.mark_dynamic(labels, 1)
        d_weight = torch.zeros_like(weight) if weight.requires_grad else None
        d_chosen, d_rejected = [], []
        loss = torch.zeros((), device=hidden.device)
        for p in range(P):
            rows, target = torch.cat([hidden[p, None], hidden[P + p, None]]), labels[p::P].contiguous()
            for x in (rows, target):
                torch._dynamo.mark_dynamic(x, 1)
            made, (value, _) = chunk(rows, weight, target, labels, reference[p, None], reference[P + p, None])
            loss.add_(value)
            gradients = dict(zip(wanted, made, strict=True))
            if d_weight is not None:
                d_weight.add_(gradients[1])
            if hidden.requires_grad:
                d_chosen.append(gradients[0][:1])
                d_rejected.append(gradients[0][1:])
        ctx.save_for_backward(torch.cat(d_chosen + d_rejected) if d_chosen else None, d_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if upstream != 1.0:  # they ask as well
            gradients = [None if x is None else x * upstream for x in gradients]
        return *gradients, None, None


@functools.cache
def _compiled_chunk(wanted: tuple[int, ...]) -> Callable[..., Any]:
    """wanted: which of rows [2, T, D] and weight want a gradient -> (gradients, (loss, metrics)) of one pair."""
    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction
    from liger_kernel.chunked_loss.fused_linear_preference import LigerFusedLinearPreferenceBase

    def loss(rows: Tensor, weight: Tensor, target: Tensor, labels: Tensor, chosen: Tensor, rejected: Tensor) -> Any:
        return LigerFusedLinearPreferenceBase._compute_loss(
            rows, weight, target, preference_loss_fn=LigerFusedLinearDPOFunction.preference_loss_fn,
            full_target=labels, beta=BETA, compute_nll_loss=False, average_log_prob=False,
            ref_chosen_logps=chosen, ref_rejected_logps=rejected,
        )  # fmt: skip

    def value(*operands: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        return (), loss(*operands)

    return torch.compile(torch.func.grad_and_value(loss, argnums=wanted, has_aux=True) if wanted else value)


def scaled_cross_entropy(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    nll = LigerFusedLinearScaledCrossEntropyFunction.apply(
        case.hidden.flatten(0, 1), case.weight, case.labels.flatten()
    )
    return dpo(-nll.view(case.labels.shape).sum(1), case.reference)


def fused_linear_cross_entropy(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    nll = liger_fused_linear_cross_entropy(
        case.hidden.flatten(0, 1), case.weight, case.labels.flatten(), reduction="none", softcap=case.softcap
    )
    return dpo(-nll.view(case.labels.shape).sum(1), case.reference)


def _preference_missing(case: Workload) -> str | None:
    reason = not_importable("liger_kernel.chunked_loss.dpo_loss")
    return reason or no_softcap(case, "Liger's preference loss")


def _scaled_missing(case: Workload) -> str | None:
    reason = not_importable("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    return reason or no_softcap(case, "Liger's scaled cross-entropy")


def _linear_missing(case: Workload) -> str | None:
    reason = needs_cuda(case, "Liger's fused linear cross-entropy (Triton)")
    return reason or not_importable("liger_kernel.transformers.functional")


PROVIDERS = {
    "liger-preference": Provider(loss=preference, missing=_preference_missing, compiled=True),
    "liger-scaled-ce": Provider(
        loss=scaled_cross_entropy, missing=_scaled_missing,
        note="a kernel on compute capability 9.0; elsewhere Liger's chunked fallback in plain torch",
    ),
    "liger-linear-ce": Provider(loss=fused_linear_cross_entropy, missing=_linear_missing),
}  # fmt: skip
