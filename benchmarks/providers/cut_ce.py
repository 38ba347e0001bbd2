"""Cut Cross-Entropy, with the filter its users run and without, and its compiled fallback."""

from __future__ import annotations

from torch import Tensor

from benchmarks.providers.contract import Provider, Workload, dpo, needs_cuda, not_importable


def filtered(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    return _loss(case, impl="cce")


def exact(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    return _loss(case, impl="cce", filter_eps=None)


def fallback(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    return _loss(case, impl="torch_compile")


def _loss(case: Workload, *, impl: str, filter_eps: str | None = "high") -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    nll = linear_cross_entropy(
        case.hidden, case.weight, case.labels, softcap=case.softcap, reduction="none", filter_eps=filter_eps, impl=impl
    )
    return dpo(-nll.float().sum(1), case.reference)


def _kernels_missing(case: Workload) -> str | None:
    return needs_cuda(case, "Cut Cross-Entropy (Triton)") or not_importable("cut_cross_entropy")


def _fallback_missing(case: Workload) -> str | None:
    return not_importable("cut_cross_entropy")


PROVIDERS = {
    "cut-ce": Provider(
        loss=filtered, missing=_kernels_missing, note="drops tiles of small gradients: see its error of dh and dw"
    ),
    "cut-ce-exact": Provider(loss=exact, missing=_kernels_missing, note="filter_eps=None"),
    "cut-ce-compile": Provider(
        loss=fallback, missing=_fallback_missing, compiled=True,
        note='impl="torch_compile", for machines without its kernels: compiled logits of the scored positions',
    ),
}  # fmt: skip
