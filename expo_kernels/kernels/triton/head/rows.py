"""Rows of logits in the accumulator's dtype -> their log-probs and, where wanted, their E'. The portable route: the
logits of a few rows come from the library's product, so their true maximum is known.

    m = max(largest z but the label's, z_y - 40)      E = exp(z - m) <= 1      rest = sum of E without the label

The floor keeps E_y finite however certain the label is.

    row_sums      a piece of a row, walked once: its m so far, and sums that shrink whenever a larger z is met;
                  E' relative to the label, exp(z - z_y), where a gradient is wanted
    row_merge     the pieces of a row, in order -> log-prob, the gradient's numbers, statistics, what E' is relative to
    row_entries   E' once more, of the rows whose largest z is over 40 above the label's: relative to m

`inverse` carries exp(what E' is relative to - m). fp16 has few exponents: there row_entries makes every row's E',
relative to the row's largest entry (which a soft cap may have made small).

A row is cut into the same pieces whatever the number of rows: a few rows fill a card, and a row's bits are its own.
Whether E' is stored is a number of the launch and not of the program, which might arrange its sums otherwise: forward
only has the same bits. Of each logit 4 bytes are read and, of E', 2 written. n rows, V vocabulary, J pieces a row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton.budget import padded
from expo_kernels.kernels.triton.device import capped, log_prob, slope
from expo_kernels.kernels.triton.head.merge import RowResults
from expo_kernels.kernels.triton.tuning import Card, Walk

FAR = tl.constexpr(40.0)  # nats
MERGED = 32  # rows a program of row_merge


class Pieces(NamedTuple):
    """What the pieces of a row leave for row_merge; n rows, J pieces."""

    m: Tensor  # [n, J] max of the largest z but the label's and z_y - 40
    rest: Tensor  # [n, J] sums of exp(z - m) without the label
    largest: Tensor | None  # [n, J] of log E' = z + log t; in fp16
    moment: Tensor | None  # [n, J] sums of exp(z - m) (z - m), for the entropy


def score_logits(
    product: Tensor, y: Tensor, head: Head, e: Tensor | None, like: Tensor, out: RowResults, card: Card
) -> None:
    """product [n, V] = h w^T, y [n] -> out, and e [n, V], 0 at the label, where given; like: a tensor of its dtype."""
    (n, V), walk, narrow = product.shape, card.walk, like.dtype == torch.float16
    stats = out.entropy.shape[0] == n
    width = _width(V, walk)
    made = _new_pieces(product, triton.cdiv(V, width), narrow, stats)
    shift, again = product.new_empty(n), torch.empty(n, dtype=torch.int8, device=product.device)
    grid = (triton.cdiv(n, walk.rows), made.m.shape[1])
    shape = {"SCALE": head.scale, "SOFTCAP": head.softcap, "BN": walk.rows, "BV": walk.columns, "num_warps": walk.warps}
    stored, stride = (like, padded(V)) if e is None else (e, e.stride(0))
    now = e is not None and not narrow
    _row_sums[grid](product, head.bias, y, *made, stored, n, V, width, int(now), product.stride(0), stride, **shape)
    _row_merge[(triton.cdiv(n, MERGED),)](
        product, head.bias, y, *made,
        shift, again, out.logp, out.inverse, out.pull, out.entropy if stats else None, out.is_argmax if stats else None,
        n, V, made.m.shape[1], product.stride(0), SCALE=head.scale, SOFTCAP=head.softcap, BN=MERGED, num_warps=1,
    )  # fmt: skip
    if e is not None:
        _row_entries[grid](
            product, head.bias, y, shift, again, e, n, V, width, product.stride(0), stride, **shape
        )  # fmt: skip


def _width(V: int, walk: Walk) -> int:
    """Columns of a piece: whole blocks of the walk, so that no more pieces are made than there are blocks."""
    return triton.cdiv(triton.cdiv(V, walk.columns), walk.pieces) * walk.columns


def _new_pieces(product: Tensor, J: int, narrow: bool, stats: bool) -> Pieces:
    m, rest, largest, moment = (
        product.new_empty(product.shape[0], J) if wanted else None for wanted in (True, True, narrow, stats)
    )
    assert m is not None and rest is not None
    return Pieces(m, rest, largest, moment)


@triton.jit(do_not_specialize=["n", "store"])
def _row_sums(
    product_ptr, bias_ptr, y_ptr,                                             # in  [n, V], [V], [n]
    m_ptr, rest_ptr, largest_ptr, moment_ptr, e_ptr,                          # out [n, J], then [n, V]
    n, V, width, store, stride_pn, stride_en,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    mask_n = offs_n < n
    row = product_ptr + offs_n * stride_pn
    y = tl.load(y_ptr + offs_n, mask=mask_n, other=-1)
    label = capped(_label(row, bias_ptr, y, V, SCALE), SOFTCAP)
    m = label - FAR
    rest, moment = tl.zeros([BN], m.dtype), tl.zeros([BN], m.dtype)
    largest = tl.full([BN], float("-inf"), m.dtype)
    begin = tl.program_id(1) * width
    for v in range(begin, tl.minimum(begin + width, V), BV):
        offs_v, z = _block(row, mask_n, bias_ptr, y, v, V, SCALE, SOFTCAP, BV)
        above = tl.maximum(m, tl.max(z, 1))
        fade = tl.exp(m - above)
        below = z - above[:, None]
        e = tl.exp(below)
        if moment_ptr is not None:
            moment = fade * (moment + (m - above) * rest) + tl.sum(tl.where(e > 0, e * below, 0.0), 1)
        if largest_ptr is not None:
            largest = tl.maximum(largest, tl.max(tl.where(z > float("-inf"), z + tl.log(slope(z, SOFTCAP)), z), 1))
        rest = fade * rest + tl.sum(e, 1)
        m = above
        if store != 0:
            _store(e_ptr, z, label, offs_n, offs_v, mask_n, V, stride_en, SOFTCAP)
    at = offs_n * tl.num_programs(1) + tl.program_id(1)
    tl.store(m_ptr + at, m, mask=mask_n)
    tl.store(rest_ptr + at, rest, mask=mask_n)
    if largest_ptr is not None:
        tl.store(largest_ptr + at, largest, mask=mask_n)
    if moment_ptr is not None:
        tl.store(moment_ptr + at, moment, mask=mask_n)


@triton.jit(do_not_specialize=["n", "J"])
def _row_merge(
    product_ptr, bias_ptr, y_ptr, m_ptr, rest_ptr, largest_ptr, moment_ptr,   # in  [n, V], [V], [n], then [n, J]
    shift_ptr, again_ptr, logp_ptr, inverse_ptr, pull_ptr, entropy_ptr, is_argmax_ptr,     # out [n]
    n, V, J, stride_pn, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    mask_n = offs_n < n
    y = tl.load(y_ptr + offs_n, mask=mask_n, other=-1)
    label = capped(_label(product_ptr + offs_n * stride_pn, bias_ptr, y, V, SCALE), SOFTCAP)
    m, largest = tl.full([BN], float("-inf"), label.dtype), tl.full([BN], float("-inf"), label.dtype)
    for j in range(J):
        at = offs_n * J + j
        m = tl.maximum(m, tl.load(m_ptr + at, mask=mask_n, other=0.0))
        if largest_ptr is not None:
            largest = tl.maximum(largest, tl.load(largest_ptr + at, mask=mask_n, other=0.0))
    rest, moment = tl.zeros([BN], label.dtype), tl.zeros([BN], label.dtype)
    for j in range(J):
        at = offs_n * J + j
        down = tl.load(m_ptr + at, mask=mask_n, other=0.0) - m
        fade, part = tl.exp(down), tl.load(rest_ptr + at, mask=mask_n, other=0.0)
        rest += fade * part
        if moment_ptr is not None:
            moment += fade * (tl.load(moment_ptr + at, mask=mask_n, other=0.0) + down * part)
    gap = label - m
    again = gap < -FAR
    shift = tl.where(again, m, label)
    if largest_ptr is not None:
        again = m == m
        shift = tl.where(largest == float("-inf"), m, largest)
    label_exp = tl.exp(gap)
    total = rest + label_exp
    logp = log_prob(rest, label_exp, -gap, label)
    poison = tl.where(logp == logp, 1.0, float("nan"))
    tl.store(shift_ptr + offs_n, shift, mask=mask_n)
    tl.store(again_ptr + offs_n, again.to(tl.int8), mask=mask_n)
    tl.store(logp_ptr + offs_n, logp, mask=mask_n)
    tl.store(inverse_ptr + offs_n, poison * tl.exp(shift - m) / total, mask=mask_n)
    tl.store(pull_ptr + offs_n, poison * (rest / total) * slope(label, SOFTCAP), mask=mask_n)
    if entropy_ptr is not None:
        tl.store(entropy_ptr + offs_n, _entropy(rest, moment, gap, logp), mask=mask_n)
        # m is the largest of the others, or 40 below the label
        tl.store(is_argmax_ptr + offs_n, label >= m, mask=mask_n)


@triton.jit(do_not_specialize=["n"])
def _row_entries(
    product_ptr, bias_ptr, y_ptr, shift_ptr, again_ptr, e_ptr,                # in  [n, V], [V], [n] x 3; out [n, V]
    n, V, width, stride_pn, stride_en,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    mask_n = tl.load(again_ptr + offs_n, mask=offs_n < n, other=0) != 0
    if tl.max(mask_n.to(tl.int32), 0) == 0:
        return
    row = product_ptr + offs_n * stride_pn
    y = tl.load(y_ptr + offs_n, mask=mask_n, other=-1)
    shift = tl.load(shift_ptr + offs_n, mask=mask_n, other=0.0)
    begin = tl.program_id(1) * width
    for v in range(begin, tl.minimum(begin + width, V), BV):
        offs_v, z = _block(row, mask_n, bias_ptr, y, v, V, SCALE, SOFTCAP, BV)
        _store(e_ptr, z, shift, offs_n, offs_v, mask_n, V, stride_en, SOFTCAP)


@triton.jit
def _store(e_ptr, z, shift, offs_n, offs_v, mask_n, V, stride_en, SOFTCAP: tl.constexpr):
    """E' relative to shift [BN], of a block z [BN, BV]; finite whatever the shift, since it may be done again."""
    e = tl.exp(tl.minimum(z - shift[:, None], 80.0))
    if SOFTCAP is not None:
        e *= tl.where(e > 0, slope(z, SOFTCAP), 0.0)  # 0, not 0 * inf, where z is -inf
    at = e_ptr + (offs_n * stride_en)[:, None] + offs_v[None, :]
    # the downcast of scoring
    tl.store(at, e.to(e_ptr.dtype.element_ty), mask=mask_n[:, None] & (offs_v < V)[None, :])


@triton.jit
def _label(row, bias_ptr, y, V, SCALE: tl.constexpr):
    """a_y [BN]; NaN for a label that is none."""
    valid = (y >= 0) & (y < V)
    a = tl.load(row + y, mask=valid, other=float("nan"))
    if bias_ptr is not None:
        a += tl.load(bias_ptr + y, mask=valid, other=0.0).to(a.dtype)
    return a * SCALE


@triton.jit
def _block(row, mask_n, bias_ptr, y, v, V, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, BV: tl.constexpr):
    """z [BN, BV] of the columns from v on: -inf past the vocabulary and at the label."""
    offs_v = v + tl.arange(0, BV)
    mask_v = offs_v < V
    a = tl.load(row[:, None] + offs_v[None, :], mask=mask_n[:, None] & mask_v[None, :], other=0.0)
    if bias_ptr is not None:
        a += tl.load(bias_ptr + offs_v, mask=mask_v, other=0.0).to(a.dtype)[None, :]
    others = mask_v[None, :] & (offs_v[None, :] != y[:, None])
    return offs_v, tl.where(others, capped(a * SCALE, SOFTCAP), float("-inf"))


@triton.jit
def _entropy(rest, moment, gap, logp):
    """H = log S - (sum E (z - top)) / S with the true maximum, the label's included: both terms >= 0."""
    above = tl.maximum(gap, 0.0)
    down, label_exp = tl.exp(-above), tl.exp(tl.minimum(gap, 0.0))
    total = rest * down + label_exp
    crowd = tl.where(rest > 0, (moment - above * rest) * down, 0.0)
    return tl.where(logp == logp, tl.log(total) - (crowd + label_exp * tl.minimum(gap, 0.0)) / total, float("nan"))
