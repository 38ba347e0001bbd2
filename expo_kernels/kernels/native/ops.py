"""The operations of the native backend as torch.library custom ops, so that a compiler sees one node for each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from expo_kernels.kernels.contract import Stats
from expo_kernels.kernels.custom_ops import register_shapes
from expo_kernels.kernels.native import csrc
from expo_kernels.kernels.native.operands import operands_of
from expo_kernels.kernels.plain import ops as plain
from expo_kernels.kernels.plain import products
from expo_kernels.kernels.plain.budget import budget


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the exponentials, for inputs of a dtype. fp16 has too few exponents for them."""
    return torch.float32 if dtype == torch.float16 else dtype


def _score(
    h: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None, scale: float, stored: Tensor | None,
    workspace_bytes: int, stats: bool,
) -> tuple[Tensor, Tensor, Stats]:  # fmt: skip
    """-> inverse, pull, stats; fills stored [n, V] where given. The only place that makes logits."""
    n, (V, D) = h.shape[0], w.shape
    sizes, operands = budget(D, V, stored_dtype(h.dtype), workspace_bytes), operands_of(h.dtype)
    numbers = h.new_empty(4, n, dtype=torch.float32)  # logp, inverse, pull, entropy
    is_argmax = h.new_empty(n, dtype=torch.bool) if stats else None
    wide_bias = None if bias is None else bias.float().contiguous()
    z = products.new_logits(h, V, sizes, operands)
    for rows, h_block, k in products.row_blocks(h, sizes, operands):
        for _ in products.logits(h_block, w, z[: h_block.shape[0]], sizes):
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
        return plain.backprop(
            stored, inverse, pull, y, c, h, w, scale, dw, db, rows, need_h, workspace_bytes
        )  # fmt: skip
    V, D = w.shape
    sizes = budget(D, V, stored_dtype(h.dtype), workspace_bytes)
    crowd, label = scale * c.float() * -inverse, scale * c.float() * pull  # [n]
    if rows is not None:
        crowd, label, y, h = crowd[rows], label[rows], y[rows], h[rows]
    dh = crowd.new_zeros(h.shape[0] if need_h else 0, D)
    operands = operands_of(h.dtype)
    products.crowd(stored, crowd, h, w, dw, db, rows, dh if need_h else None, sizes, operands)
    if need_h:
        csrc.ops().finish_rows(dh, crowd, label, _in_one_piece(w), y.contiguous())
    if dw is not None:
        csrc.ops().add_rows(dw, y.contiguous(), _in_one_piece(h), label)
    if db is not None:
        db.index_add_(0, y, label)  # in order on a CPU
    return dh


@custom_op("expo_kernels::native_segment_sum", mutates_args=())
def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """values [n], offsets [S+1] -> [S]: summed in float64, each segment on its own, then cast once."""
    if values.dtype == torch.float64:
        return plain.segment_sum(values, offsets)
    sums = values.new_empty(offsets.shape[0] - 1)
    csrc.ops().segment_sum(values.contiguous(), offsets.contiguous(), sums)
    return sums


def _in_one_piece(rows: Tensor) -> Tensor:
    """Rows whose numbers lie side by side, as nearly all do."""
    return rows if rows.stride(1) == 1 else rows.contiguous()


register_shapes(logprob, score, backprop, segment_sum)
