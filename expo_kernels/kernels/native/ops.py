"""The operations of the native backend as torch.library custom ops, so that a compiler sees one node for each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from expo_kernels.kernels.contract import Stats
from expo_kernels.kernels.custom_ops import register_shapes
from expo_kernels.kernels.factors import Factors, factors
from expo_kernels.kernels.native import csrc
from expo_kernels.kernels.native.products import products_of
from expo_kernels.kernels.native.sparse import Kernels
from expo_kernels.kernels.plain import ops as plain
from expo_kernels.kernels.plain import products
from expo_kernels.kernels.plain.budget import budget
from expo_kernels.kernels.plain.sparse import exact_path
from expo_kernels.kernels.sparse.crowd import Rows, crowd
from expo_kernels.kernels.sparse.rules import rule_of


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the exponentials, for inputs of a dtype. fp16 has too few exponents for them."""
    return torch.float32 if dtype == torch.float16 else dtype


def _score(
    h: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None, scale: float, stored: Tensor | None,
    workspace_bytes: int, stats: bool,
) -> tuple[Tensor, Tensor, Stats]:  # fmt: skip
    """-> inverse, pull, stats; fills stored [n, V] where given. The only place that makes logits."""
    n = h.shape[0]
    by = _products(h.dtype, w, workspace_bytes)
    numbers = h.new_empty(4, n, dtype=torch.float32)  # logp, inverse, pull, entropy
    is_argmax = h.new_empty(n, dtype=torch.bool) if stats else None
    wide_bias = None if bias is None else bias.float().contiguous()
    z = in_huge_pages(by.new_logits(h, w.shape[0]))
    for rows, h_block, k in by.row_blocks(h):
        for _ in by.logits(h_block, w, z[: h_block.shape[0]]):
            pass
        csrc.ops().score_rows(
            z[:k], y[rows].contiguous(), wide_bias, softcap or 0.0, scale, None if stored is None else stored[rows],
            numbers[:, rows], None if is_argmax is None else is_argmax[rows],
        )  # fmt: skip
    logp, inverse, pull, entropy = (row.clone() for row in numbers)
    nothing = h.new_empty(0, dtype=torch.float32), h.new_empty(0, dtype=torch.bool)
    return inverse, pull, Stats(logp, *(nothing if is_argmax is None else (entropy, is_argmax)))


@custom_op("expo_kernels::native_logprob", mutates_args=())
def logprob(
    h: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None, scale: float,
    workspace_bytes: int, stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """h [n, D], y [n], w [V, D] -> logp [n], entropy, is_argmax ([n], or empty without stats)."""
    if h.dtype == torch.float64:
        return plain.logprob(h, y, w, bias, softcap, scale, workspace_bytes, stats)
    return _score(h, y, w, bias, softcap, scale, None, workspace_bytes, stats)[2]


@custom_op("expo_kernels::native_score", mutates_args=("stored",))
def score(
    h: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None, scale: float,
    stored: Tensor, workspace_bytes: int, stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Fills stored [n, V] with E', 0 at the label; -> inverse [n], pull [n], what logprob returns.

    d logp / da_v = -inverse stored_v  (v != y)        d logp / da_y = pull        (csrc/cpu/score_rows.cpp)
    """
    if h.dtype == torch.float64:
        return plain.score(h, y, w, bias, softcap, scale, stored, workspace_bytes, stats)
    inverse, pull, made = _score(h, y, w, bias, softcap, scale, stored, workspace_bytes, stats)
    return inverse, pull, *made


@custom_op("expo_kernels::native_backprop", mutates_args=("dw", "db"))
def backprop(
    stored: Tensor, inverse: Tensor, pull: Tensor, y: Tensor, c: Tensor, h: Tensor, w: Tensor, scale: float,
    dw: Tensor | None, db: Tensor | None, rows: Tensor | None, need_h: bool, workspace_bytes: int,
) -> Tensor:  # fmt: skip
    """da = c (pull onehot(y) - inverse stored), row by row, and dh = scale da w, dw += scale da^T h, db += scale da:
    two products for the stored part, the label's by rows."""
    if h.dtype == torch.float64:
        return plain.backprop(stored, inverse, pull, y, c, h, w, scale, dw, db, rows, need_h, workspace_bytes)
    by, made = _products(h.dtype, w, workspace_bytes), factors(inverse, pull, y, c, h, scale, rows)
    dh = made.new_dh(w.shape[1], need_h)
    own = dh if need_h else None
    products.crowd(by, stored, made.crowd, made.h, w, dw, db, rows, own)
    _finish(made, w, own, dw, db)
    return dh


@custom_op("expo_kernels::native_sparse_backprop", mutates_args=("dw", "db"))
def sparse_backprop(
    stored: Tensor, inverse: Tensor, pull: Tensor, y: Tensor, c: Tensor, h: Tensor, w: Tensor, scale: float,
    dw: Tensor | None, db: Tensor | None, rows: Tensor | None, need_h: bool, workspace_bytes: int,
    rule: str, amount: float, seed: int, first: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """backprop with the products of the columns that a rule keeps alone; -> dh, and its report's totals."""
    if h.dtype == torch.float64:
        return plain.sparse_backprop(
            stored, inverse, pull, y, c, h, w, scale, dw, db, rows, need_h, workspace_bytes, rule, amount, seed, first
        )  # fmt: skip
    by, made = _products(h.dtype, w, workspace_bytes), factors(inverse, pull, y, c, h, scale, rows)
    dh = made.new_dh(w.shape[1], need_h)
    own = dh if need_h else None
    exact = exact_path(by, stored, made, w, dw, db, rows)
    kept = Rows.of(stored, inverse, made, rows)
    parts, pieces = Kernels(by), _in_one_piece(w)
    totals = crowd(rule_of(rule, amount, seed), parts, exact, kept, pieces, dw, db, own, first)
    _finish(made, w, own, dw, db)
    return dh, totals


def _products(dtype: torch.dtype, w: Tensor, workspace_bytes: int) -> products.Library:
    """For inputs of a dtype."""
    return products_of(dtype, budget(w.shape[1], w.shape[0], stored_dtype(dtype), workspace_bytes))


def _finish(made: Factors, w: Tensor, dh: Tensor | None, dw: Tensor | None, db: Tensor | None) -> None:
    """The factor of each row, which the products left out of dh, and the labels' part."""
    y = made.y.contiguous()
    if dh is not None:
        csrc.ops().finish_rows(dh, made.crowd, made.label, _in_one_piece(w), y)
    if dw is not None:
        csrc.ops().add_rows(dw, y, _in_one_piece(made.h), made.label)
    if db is not None:
        db.index_add_(0, y, made.label)  # in order on a CPU


@custom_op("expo_kernels::native_segment_sum", mutates_args=())
def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """values [n], offsets [S+1] -> [S]: summed in float64, each segment on its own, then cast once."""
    if values.dtype == torch.float64:
        return plain.segment_sum(values, offsets)
    sums = values.new_empty(offsets.shape[0] - 1)
    csrc.ops().segment_sum(values.contiguous(), offsets.contiguous(), sums)
    return sums


def in_huge_pages(x: Tensor) -> Tensor:
    """x itself, uninitialised: it is first touched a large page at a time where it is large."""
    csrc.ops().prefer_huge_pages(x)
    return x


def _in_one_piece(rows: Tensor) -> Tensor:
    """Rows whose numbers lie side by side, as nearly all do."""
    return rows if rows.stride(1) == 1 else rows.contiguous()


register_shapes(logprob, score, backprop, sparse_backprop, segment_sum)
