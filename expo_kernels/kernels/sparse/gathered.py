"""The products of some columns, of gathered operands a tile at a time: what the CPU's backends have in common."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

TILE_BYTES = 8 << 20  # of gathered rows of w in fp32, so that they are still in cache when they are multiplied


class Products(Protocol):
    operands: torch.dtype

    def add(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        """out += a b, out in the accumulator's dtype."""

    def product(self, a: Tensor, b: Tensor) -> Tensor: ...


class Gathered:
    """add_products of crowd.Parts, from three operations that a backend gives."""

    def __init__(self, by: Products, tile: int) -> None:
        """by: what multiplies; tile: columns at once that fit the workspace."""
        self.by, self.tile = by, tile

    def gather_columns(self, e: Tensor, columns: Tensor) -> Tensor:
        """-> [n, k] in the operands' dtype."""
        raise NotImplementedError

    def gather_rows(self, w: Tensor, rows: Tensor, factor: Tensor | None) -> Tensor:
        """-> [k, D] in the operands' dtype, each row times its factor."""
        raise NotImplementedError

    def add_rows(self, out: Tensor, index: Tensor, rows: Tensor, factor: Tensor | None) -> None:
        """out[index] += factor rows; no index comes twice."""
        raise NotImplementedError

    def add_products(
        self, e: Tensor, columns: Tensor, weight: Tensor | None, w: Tensor, scaled_h: Tensor, dh: Tensor | None,
        dw: Tensor | None, db: Tensor | None, factor: Tensor,
    ) -> None:  # fmt: skip
        operand = scaled_h.to(self.by.operands)
        step = max(1, min(self.tile, TILE_BYTES // (scaled_h.shape[1] * scaled_h.element_size())))
        for i in range(0, columns.shape[0], step):
            some = columns[i : i + step]
            own = None if weight is None else weight[i : i + step]
            kept = self.gather_columns(e, some)
            if dh is not None:
                self.by.add(dh, kept, self.gather_rows(w, some, own))
            if dw is not None:
                self.add_rows(dw, some, self.by.product(kept.T, operand), own)
            if db is not None:
                sums = kept.to(factor.dtype).T @ factor
                db.index_add_(0, some, sums if own is None else sums * own)
