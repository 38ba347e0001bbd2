"""The CPU backend: the row kernels of csrc/ around the products of plain.

csrc.py      the compiled library, or why there is none       ops.py  the operations a compiler sees
products.py  what multiplies, and in which dtype: the library or csrc/cpu/product.cpp

float64 goes through plain. fp16 exponentials are stored in fp32, which wants no scale of a row's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.kernels.custom_ops import CustomOps
from expo_kernels.kernels.native import ops
from expo_kernels.kernels.native.ops import stored_dtype
from expo_kernels.kernels.plain.budget import budget


def chunk_rows(D: int, V: int, dtype: torch.dtype, workspace_bytes: int) -> int:
    return budget(D, V, stored_dtype(dtype), workspace_bytes).chunk_rows


def prepared(workspace: Tensor) -> Tensor:
    """A compiler makes the workspace itself, and this would be one more operation for it to see."""
    return workspace if torch.compiler.is_compiling() else ops.in_huge_pages(workspace)


BACKEND = CustomOps(
    "native", ops, chunk_rows, row_stride=lambda V: V, stored_dtype=stored_dtype, prepared=prepared
)  # fmt: skip
