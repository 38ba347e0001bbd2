"""This library, by backend."""

from __future__ import annotations

import os
from unittest import mock

import torch
from torch import Tensor

from benchmarks.providers.contract import OBJECTIVE, STRICT, Loss, Provider, Workload, in_words, needs_cuda
from expo_kernels import Execution, HeadOptions
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import from_padded

PRODUCTS = "EXPO_KERNELS_NATIVE_PRODUCTS"  # fp32, or bf16 of bf16 inputs


def _on(backend: str) -> Loss:
    def ours(case: Workload, workspace_bytes: int | None = None) -> Tensor:
        return preference_loss(
            case.hidden, case.weight, case.batch, OBJECTIVE, reference=case.reference,
            head=HeadOptions(softcap=case.softcap),
            execution=Execution(backend=backend, workspace_bytes=workspace_bytes),
        ).loss  # fmt: skip

    return ours


def _missing(backend: str):
    def reason(case: Workload) -> str | None:
        """What the library itself says of a tiny loss in this dtype, on this device."""
        tiny = case.weight.new_zeros(2, 1, 64)
        batch = from_padded(torch.ones(2, 1, dtype=torch.long)).to(tiny.device)
        try:
            preference_loss(
                tiny, case.weight.new_zeros(64, 64), batch, OBJECTIVE, reference=case.reference.new_zeros(2),
                execution=Execution(backend=backend),
            )  # fmt: skip
        except (NotImplementedError, RuntimeError, ValueError) as error:
            return in_words(error)
        return None

    return reason


def _with_bf16_products(loss: Loss) -> Loss:
    def ours(case: Workload, workspace_bytes: int | None = None) -> Tensor:
        with mock.patch.dict(os.environ, {PRODUCTS: "bf16"}):
            return loss(case, workspace_bytes)  # gradients too: backward hands them out

    return ours


def _bf16_missing(case: Workload) -> str | None:
    wide = case.weight.dtype != torch.bfloat16
    return "bf16 products are for bf16 inputs" if wide else _missing("native")(case)


def _triton_missing(case: Workload) -> str | None:
    """Triton's interpreter is for tests: on a CPU it is never timed."""
    return needs_cuda(case, "the Triton backend") or _missing("triton")(case)


PROVIDERS = {
    "plain": Provider(loss=_on("plain"), missing=_missing("plain"), bounds=STRICT, ours=True),
    "triton": Provider(
        loss=_on("triton"), missing=_triton_missing, ours=True,
        bounds=STRICT._replace(dw=2.0),  # the one exception of docs/numerics.md (decision 0003)
    ),
    "native": Provider(loss=_on("native"), missing=_missing("native"), bounds=STRICT, ours=True),
    "native-bf16": Provider(
        loss=_with_bf16_products(_on("native")), missing=_bf16_missing, bounds=STRICT, ours=True,
        note=f"{PRODUCTS}=bf16: logits rounded as naive's are",
    ),
}  # fmt: skip
