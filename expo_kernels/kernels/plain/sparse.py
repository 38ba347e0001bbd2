"""The sparse gradient's operations on rows and columns in plain torch, and the exact path for what keeps too much."""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.kernels.factors import Factors
from expo_kernels.kernels.plain.products import Library, crowd
from expo_kernels.kernels.sparse.crowd import Exact
from expo_kernels.kernels.sparse.gathered import Gathered


class TorchParts(Gathered):
    def __init__(self, by: Library) -> None:
        """by: of operands in the accumulator's dtype."""
        super().__init__(by, by.sizes.chunk_tile)
        self.dtype = by.operands

    def column_sums(self, e: Tensor, f: Tensor, g: Tensor) -> Tensor:
        wide = e.to(self.dtype)
        weighted = wide * f[:, None]
        return torch.stack([weighted.square().sum(0), g @ wide, weighted.amax(0)])

    def group_sums(self, e: Tensor, group: Tensor, groups: int) -> Tensor:
        sums = e.new_zeros(groups, e.shape[0], dtype=self.dtype)
        for k in range(groups) if groups <= 2 else group.unique().tolist():
            sums[k] = e[:, group == k].to(self.dtype).sum(1)
        return sums.T

    def gather_columns(self, e: Tensor, columns: Tensor) -> Tensor:
        return e[:, columns].to(self.dtype)

    def gather_rows(self, w: Tensor, rows: Tensor, factor: Tensor | None) -> Tensor:
        wide = w[rows].to(self.dtype)
        return wide if factor is None else wide.mul_(factor[:, None])

    def add_rows(self, out: Tensor, index: Tensor, rows: Tensor, factor: Tensor | None) -> None:
        out[index] += rows if factor is None else rows * factor[:, None]


def exact_path(
    by: Library, stored: Tensor, made: Factors, w: Tensor, dw: Tensor | None, db: Tensor | None, rows: Tensor | None
) -> Exact:
    """products.crowd for some of the n rows, or for all as if there were no rule."""

    def run(at: Tensor | None, dh: Tensor | None) -> None:
        if at is None:
            crowd(by, stored, made.crowd, made.h, w, dw, db, rows, dh)
        else:
            which = at if rows is None else rows[at]
            crowd(by, stored, made.crowd[at], made.h[at], w, dw, db, which, dh)

    return run
