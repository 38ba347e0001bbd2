"""The sparse gradient's operations on rows and columns, by the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.kernels.native import csrc
from expo_kernels.kernels.native.products import Own, products_of
from expo_kernels.kernels.plain.products import Library
from expo_kernels.kernels.sparse.gathered import Gathered


class Kernels(Gathered):
    def __init__(self, by: Library) -> None:
        """by: what the exact path multiplies by. Its operands serve here too where its sums are in fp32: what weighs a
        column is 1 or a power of two, which bf16 loses nothing by."""
        super().__init__(by if isinstance(by, Own) else products_of(torch.float32, by.sizes), by.sizes.chunk_tile)

    def column_sums(self, e: Tensor, f: Tensor, g: Tensor) -> Tensor:
        out = f.new_empty(3, e.shape[1])
        csrc.ops().column_sums(e, f, g, out)
        return out

    def group_sums(self, e: Tensor, group: Tensor, groups: int) -> Tensor:
        out = e.new_empty(e.shape[0], groups, dtype=torch.float32)
        csrc.ops().group_sums(e, group, out)
        return out

    def gather_columns(self, e: Tensor, columns: Tensor) -> Tensor:
        out = e.new_empty(e.shape[0], columns.shape[0], dtype=self.by.operands)
        csrc.ops().gather_columns(e, columns, out)
        return out

    def gather_rows(self, w: Tensor, rows: Tensor, factor: Tensor | None) -> Tensor:
        out = w.new_empty(rows.shape[0], w.shape[1], dtype=self.by.operands)
        csrc.ops().gather_rows(w, rows, factor, out)
        return out

    def add_rows(self, out: Tensor, index: Tensor, rows: Tensor, factor: Tensor | None) -> None:
        csrc.ops().add_rows(out, index, rows, factor)
