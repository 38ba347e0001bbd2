"""The products, where nearly all of the time goes: h and w -> logits, and exponentials -> dh and dw (docs/math.md).

Operands are in the accumulator's dtype, so bf16 and fp16 inputs are multiplied exactly and summed in fp32. The native
backend takes these with bf16 operands too if it is asked to, and products of its own (native/products.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from expo_kernels.kernels.plain.budget import Budget, padded


class RowBlock(NamedTuple):
    rows: slice
    h: Tensor  # [full, D padded] in the operands' dtype: whole products, the last one's padding zero
    real: int  # so many of them are not padding


class Library:
    """torch's products."""

    def __init__(self, operands: torch.dtype, sizes: Budget) -> None:
        self.operands, self.sizes = operands, sizes
        self.results = operands  # the dtype of logits

    def row_blocks(self, h: Tensor) -> Iterator[RowBlock]:
        """h [n, D] in blocks of at most sizes.logit_rows rows."""
        for i in range(0, h.shape[0], self.sizes.logit_rows):
            block = widen(h[i : i + self.sizes.logit_rows], self.operands)
            k = block.shape[0]
            missing = -k % self.sizes.product_rows
            yield RowBlock(slice(i, i + k), pad(block, (0, 0, 0, missing)) if missing else block, k)

    def new_logits(self, h: Tensor, V: int) -> Tensor:
        """Uninitialised, for any of the blocks."""
        whole = -(-h.shape[0] // self.sizes.product_rows) * self.sizes.product_rows
        return h.new_empty(min(self.sizes.logit_rows, whole), V, dtype=self.results)

    def logits(self, h: Tensor, w: Tensor, z: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """h [n, D padded], w [V, D] -> z [n, V] = h w^T in place; yields columns with a tile of it, still in cache."""
        for v in range(0, w.shape[0], self.sizes.tile):
            columns = slice(v, v + self.sizes.tile)
            w_tile, a = widen(w[columns], self.operands).T, z[:, columns]
            rows = self.sizes.product_rows
            if one_product_has_their_bits(h.shape[0], rows, *w_tile.shape, h.dtype, h.device, torch.get_num_threads()):
                rows = h.shape[0]
            for i in range(0, h.shape[0], rows):
                torch.mm(h[i : i + rows], w_tile, out=a[i : i + rows])
            yield columns, a

    def add(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        """out += a b. Operands of another dtype round the product to it before it is added."""
        if out.dtype == a.dtype:
            out.addmm_(a, b)
        else:
            out.add_(a @ b)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def widen(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [k, D] -> [k, D up to whole vectors] in `dtype`; x itself where that changes nothing."""
    x = x.to(dtype)
    extra = padded(x.shape[1]) - x.shape[1]
    return pad(x, (0, extra)) if extra else x


@functools.cache
def one_product_has_their_bits(
    rows: int, product_rows: int, D: int, columns: int, dtype: torch.dtype, device: torch.device, threads: int
) -> bool:
    """Whether one product of `rows` rows has the bits of several of product_rows, which is all that a log-prob's bits
    may depend on. Which kernel a library takes depends on shapes, not on numbers, so these are tried once; threads is
    for the cache. On a CPU alone, where one product is up to a sixth faster (docs/decisions/0006)."""
    if device.type != "cpu" or rows == product_rows:
        return False
    random = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, D, generator=random, dtype=dtype) for n in (rows, columns))
    return torch.equal(h @ w.T, torch.cat([part @ w.T for part in h.split(product_rows)]))


def crowd(
    by: Library, stored: Tensor, factor: Tensor, h: Tensor, w: Tensor, dw: Tensor | None, db: Tensor | None,
    rows: Tensor | None, dh: Tensor | None,
) -> None:  # fmt: skip
    """With e = stored [n, V] (its `rows` where given): dh [n, D] += e w, without the factor [n] of each row;
    dw += e^T (factor h), db += e^T factor. All in place, in the factor's dtype, which is the accumulator's."""
    dtype = factor.dtype
    scaled_h = (h.to(dtype) * factor[:, None]).to(by.operands) if dw is not None else factor
    tile = by.sizes.chunk_tile
    if rows is None and db is None and stored.dtype == w.dtype == by.operands:  # a tile is a view
        tile = max(tile, by.sizes.tile_bytes // (w.shape[1] * by.operands.itemsize))
    for v in range(0, w.shape[0], tile):
        columns = slice(v, v + tile)
        e = stored[:, columns]
        e = (e if rows is None else e[rows]).to(by.operands)
        if dh is not None:
            by.add(dh, e, w[columns].to(by.operands))
        if dw is not None:
            by.add(dw[columns], e.T, scaled_h)
        if db is not None:
            db[columns].addmv_(e.to(dtype).T, factor)
