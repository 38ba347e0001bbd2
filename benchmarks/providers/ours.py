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

PRODUCTS = "EXPO_KERNELS_NATIVE_PRODUCTS"


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


def _native(products: str, note: str) -> Provider:
    """With products that bf16 inputs alone have."""
    loss, reason = _on("native"), _missing("native")

    def ours(case: Workload, workspace_bytes: int | None = None) -> Tensor:
        with mock.patch.dict(os.environ, {PRODUCTS: products}):
            return loss(case, workspace_bytes)  # gradients too: backward hands them out

    def missing(case: Workload) -> str | None:
        if case.weight.dtype != torch.bfloat16:
            return f"{products} products are for bf16 inputs"
        with mock.patch.dict(os.environ, {PRODUCTS: products}):
            return reason(case)

    return Provider(loss=ours, missing=missing, bounds=STRICT, ours=True, note=f"{PRODUCTS}={products}: {note}")


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
    "native-bf16": _native("bf16", "logits rounded as naive's are"),
    "native-fp32": _native("fp32", "operands in fp32"),
}  # fmt: skip
