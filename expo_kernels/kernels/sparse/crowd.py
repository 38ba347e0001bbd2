"""The stored part of dh, dw and db from the columns that a rule keeps, one block of rows after the other.

With a = factor e row by row (factor = -c scale / S), columns of weight 1 / q, and the exact path for dense blocks:

    dh = sum over kept v of e_v w_v / q_v  (without the factor of its row)        dw_v += (1 / q_v) sum over n of a h
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from expo_kernels.kernels.factors import Factors
from expo_kernels.kernels.sparse.choice import Choice, Columns, choose, sum_factor
from expo_kernels.kernels.sparse.totals import add_block, add_exact, new_totals
from expo_kernels.sparsity import Certified, Sparsity

# rows that share their columns: on a CPU measured (docs/sparsity.md); on a GPU so many that a block's launches and the
# wait for its list are short beside its products, by reckoning
BLOCK, GPU_BLOCK = 64, 512


class Parts(Protocol):
    """A backend's operations; all numbers in the accumulator's dtype but e and w."""

    def column_sums(self, e: Tensor, f: Tensor, g: Tensor) -> Tensor:
        """e [n, V], f [n], g [n] -> [3, V]: sum of (f e)^2, sum of g e, max of f e, each over the rows."""

    def group_sums(self, e: Tensor, group: Tensor, groups: int) -> Tensor:
        """e [n, V], group [V] int64 -> [n, groups]: each row's sums over the columns of a group."""

    def add_products(
        self, e: Tensor, columns: Tensor, weight: Tensor | None, w: Tensor, scaled_h: Tensor, dh: Tensor | None,
        dw: Tensor | None, db: Tensor | None, factor: Tensor,
    ) -> None:  # fmt: skip
        """With e [n, V], columns and weight [k], scaled_h [n, D] = factor h and factor [n], of these columns alone:
        dh [n, D] += e (weight w); dw [V, D] += weight e^T scaled_h; db [V] += weight e^T factor."""


class Rows(NamedTuple):
    """Those of a chunk that take part."""

    stored: Tensor  # [R, V]
    inverse: Tensor  # [n] 1 / S
    c: Tensor  # [n] dL/dlogp times the head's scale
    factor: Tensor  # [n] -c / S
    h: Tensor  # [n, D]
    which: Tensor | None  # [n] the rows of `stored` that these are; None: the first n

    @staticmethod
    def of(stored: Tensor, inverse: Tensor, made: Factors, rows: Tensor | None) -> Rows:
        return Rows(stored, inverse if rows is None else inverse[rows], made.c, made.crowd, made.h, rows)


Exact = Callable[[Tensor | None, Tensor | None], None]  # (positions among the n or None, their dh or None)


def crowd(
    rule: Sparsity, parts: Parts, exact: Exact, rows: Rows, w: Tensor, dw: Tensor | None, db: Tensor | None,
    dh: Tensor | None, first: int,
) -> Tensor:  # fmt: skip
    """dh [n, D] += e w (each row without its factor), dw and db += theirs, in place; -> totals.

    first: the number of the chunk's first token, from which its blocks' draws follow.
    """
    n, dense = rows.h.shape[0], []
    totals = new_totals(rows.h.device)
    if isinstance(rule, Certified) and rule.tau == 0:
        exact(None, dh)
        add_exact(totals, rows.c, w.shape[0])
        return totals
    unit = rows.c.to(totals.dtype).square().mean().sqrt().clamp(min=torch.finfo(rows.c.dtype).tiny)
    f = rows.factor.abs() / unit.to(rows.c.dtype)
    h_norms, w_norms = _norms(rows.h, f.dtype), _norms(w, f.dtype)
    size = BLOCK if rows.h.device.type == "cpu" else GPU_BLOCK
    for i in range(0, n, size):
        block = slice(i, min(i + size, n))
        e = rows.stored[block] if rows.which is None else rows.stored[rows.which[block]]
        choice = _choice(rule, parts, e, f[block], h_norms[block], first + i)
        if choice is None:
            dense.append(block)
            continue
        scaled_h = rows.h[block].to(f.dtype) * rows.factor[block, None]
        own = None if dh is None else dh[block]
        parts.add_products(e, choice.columns, choice.weight, w, scaled_h, own, dw, db, rows.factor[block])
        add_block(totals, choice, rows.c[block], unit, rows.inverse[block], h_norms[block], w_norms)
    _exactly(exact, dense, rows.c, w.shape[0], dh, totals)
    return totals


def _norms(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[k] of the rows; cast some at a time, which takes a fifth of the time of a norm that casts by itself."""
    return torch.cat([torch.linalg.vector_norm(part.to(dtype), dim=1) for part in x.split(1024)])


def _choice(rule: Sparsity, parts: Parts, e: Tensor, f: Tensor, h_norms: Tensor, number: int) -> Choice | None:
    sums = parts.column_sums(e, f, sum_factor(rule, f, h_norms))
    squares, weighted, largest = sums
    block = Columns(squares, weighted, largest, lambda group, groups: parts.group_sums(e, group, groups))
    return choose(rule, block, f, number)


def _exactly(exact: Exact, dense: list[slice], c: Tensor, V: int, dh: Tensor | None, totals: Tensor) -> None:
    """The blocks that kept too much, in one product; all of them: the exact path's bits."""
    if not dense:
        return
    n = sum(block.stop - block.start for block in dense)
    if n == c.shape[0]:
        exact(None, dh)
        return add_exact(totals, c, V)
    at = torch.cat([torch.arange(block.start, block.stop, device=c.device) for block in dense])
    part = None if dh is None else dh[at]
    exact(at, part)
    if dh is not None and part is not None:
        dh[at] = part
    add_exact(totals, c[at], V)
    return None
