"""The label's column, apart from all others: its logit before the product, its entry of the gradient after it.

`label_logits` is a gather and a dot a row; fused.py takes it for the offset, never for the log-prob. `scatter_labels`
adds the label's entry of dw and db: tokens of one label are added one after the other, in order, by one program, so
there are no atomics and the bits are the same on every run.

n rows, D hidden, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from expo_kernels.kernels.contract import Head, accumulator
from expo_kernels.kernels.triton.device import capped

ROWS, PLACES, DEPTH = 32, 8, 128


def label_logits(h: Tensor, y: Tensor, head: Head) -> Tensor:
    """h [n, D], y [n] -> z_y [n]; NaN for a label that is none."""
    n, D = h.shape
    out = h.new_empty(n, dtype=accumulator(h.dtype))
    _label_logits[(triton.cdiv(n, ROWS),)](
        h, head.w, head.bias, y, out, n, head.w.shape[0], h.stride(0), head.w.stride(0),
        SCALE=head.scale, SOFTCAP=head.softcap, D=D, BN=ROWS, BD=DEPTH, num_warps=4,
    )  # fmt: skip
    return out


def scatter_labels(dw: Tensor | None, db: Tensor | None, y: Tensor, h: Tensor, label: Tensor) -> None:
    """dw[y] += label h and db[y] += label; h [n, D], y [n], label [n]."""
    n, D = h.shape
    target = dw if dw is not None else db
    if n == 0 or target is None:
        return
    ordered, order = torch.sort(y, stable=True)
    _scatter_labels[(triton.cdiv(n, PLACES), triton.cdiv(D, DEPTH))](
        ordered, order, h, label, dw, db,
        n, D, target.shape[0], h.stride(0), 0 if dw is None else dw.stride(0), BN=PLACES, BD=DEPTH, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def _label_logits(
    h_ptr, w_ptr, bias_ptr, y_ptr, out_ptr,       # in  [n, D], [V, D], [V], [n]; out [n]
    n, V, stride_hn, stride_wv,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    mask_n = offs_n < n
    y = tl.load(y_ptr + offs_n, mask=mask_n, other=-1)
    valid = (y >= 0) & (y < V)
    acc = tl.zeros([BN, BD], out_ptr.dtype.element_ty)
    for d in range(0, D, BD):
        offs_d = d + tl.arange(0, BD)
        mask = valid[:, None] & (offs_d < D)[None, :]
        h = tl.load(h_ptr + offs_n[:, None] * stride_hn + offs_d[None, :], mask=mask, other=0.0)
        w = tl.load(w_ptr + y[:, None] * stride_wv + offs_d[None, :], mask=mask, other=0.0)
        acc += h.to(acc.dtype) * w.to(acc.dtype)
    a = tl.sum(acc, 1)
    if bias_ptr is not None:
        a += tl.load(bias_ptr + y, mask=valid, other=0.0).to(a.dtype)
    z = capped(a * SCALE, SOFTCAP)
    tl.store(out_ptr + offs_n, tl.where(valid, z, float("nan")), mask=mask_n)


@triton.jit(do_not_specialize=["n"])
def _scatter_labels(
    ordered_ptr, order_ptr, h_ptr, label_ptr,     # in  [n] labels sorted, [n] whose they are, [n, D], [n]
    dw_ptr, db_ptr,                               # in and out [V, D], [V]
    n, D, V, stride_hn, stride_wv, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Program (block of places, block of D): for each place that is the first of its label, all tokens of the label."""
    place = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    offs_d = tl.program_id(1) * BD + tl.arange(0, BD)
    mask_d = offs_d < D
    y = tl.load(ordered_ptr + place, mask=place < n, other=-1)
    before = tl.load(ordered_ptr + place - 1, mask=(place > 0) & (place < n), other=-1)
    first = (y != before) & (y >= 0) & (y < V)
    row, bias = tl.zeros([BN, BD], label_ptr.dtype.element_ty), tl.zeros([BN], label_ptr.dtype.element_ty)
    more = first
    while tl.max(more.to(tl.int32), 0) > 0:
        token = tl.load(order_ptr + place, mask=more, other=0)
        label = tl.load(label_ptr + token, mask=more, other=0.0)
        at = h_ptr + token[:, None] * stride_hn + offs_d[None, :]
        h = tl.load(at, mask=more[:, None] & mask_d[None, :], other=0.0)
        row += label[:, None] * h.to(row.dtype)
        bias += label
        place += 1
        more = more & (tl.load(ordered_ptr + place, mask=more & (place < n), other=-1) == y)
    if dw_ptr is not None:
        at_w, mask_w = dw_ptr + y[:, None] * stride_wv + offs_d[None, :], first[:, None] & mask_d[None, :]
        tl.store(at_w, tl.load(at_w, mask=mask_w, other=0.0) + row, mask=mask_w)
    if db_ptr is not None:
        mask_b = first & (tl.program_id(1) == 0)
        tl.store(db_ptr + y, tl.load(db_ptr + y, mask=mask_b, other=0.0) + bias, mask=mask_b)
