"""A row of logits in the accumulator's dtype -> its log-prob and, where wanted, its row of E'. The portable route: the
logits of a few rows come from the library's product, so their true maximum is known.

    m = max(largest z but the label's, z_y - 40)      E = exp(z - m) <= 1      rest = sum of E without the label

The floor keeps E_y finite however certain the label is. fp16 has few exponents, so there E' is stored relative to the
row's largest entry (which a soft cap may have made small), and `inverse` carries that factor.

A program walks its rows twice, once for the maximum and once for the sums: for each entry it reads 2 x 4 bytes and,
where a gradient is wanted, writes 2. n rows, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton.budget import padded
from expo_kernels.kernels.triton.device import capped, log_prob, slope
from expo_kernels.kernels.triton.merge import RowResults
from expo_kernels.kernels.triton.tuning import Card

NEVER_BELOW_LABEL = tl.constexpr(40.0)


def row_kernel(
    product: Tensor, y: Tensor, head: Head, e: Tensor | None, like: Tensor, out: RowResults, card: Card
) -> None:
    """product [n, V] = h w^T, y [n] -> out, and e [n, V] with 0 at the label where given; like: a tensor of its dtype.

    Whether E' is stored is a number of the launch and not of the program: another program would arrange its sums
    otherwise, and a log-prob would have other bits forward only.
    """
    n, V = product.shape
    stats = out.entropy.shape[0] == n
    _row_kernel[(triton.cdiv(n, card.walk.rows),)](
        product, head.bias, y,
        like if e is None else e, out.logp, out.inverse, out.pull,
        out.entropy if stats else None, out.is_argmax if stats else None,
        n, V, int(e is not None), product.stride(0), padded(V) if e is None else e.stride(0),
        SCALE=head.scale, SOFTCAP=head.softcap, NARROW=like.dtype == torch.float16,
        BN=card.walk.rows, BV=card.walk.columns, num_warps=card.walk.warps,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "store"])
def _row_kernel(
    product_ptr, bias_ptr, y_ptr,                                             # in  [n, V], [V], [n]
    e_ptr, logp_ptr, inverse_ptr, pull_ptr, entropy_ptr, is_argmax_ptr,       # out [n, V], then [n]
    n, V, store, stride_pn, stride_en,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, NARROW: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    mask_n = offs_n < n
    row = product_ptr + offs_n * stride_pn
    y = tl.load(y_ptr + offs_n, mask=mask_n, other=-1)
    label = capped(_label(row, bias_ptr, y, V, SCALE), SOFTCAP)
    top, largest = _maxima(row, mask_n, bias_ptr, y, V, SCALE, SOFTCAP, NARROW, BN, BV)
    m = tl.maximum(top, label - NEVER_BELOW_LABEL)
    shift = m
    if NARROW:
        shift = tl.where(largest == float("-inf"), m, largest)
    rest, moment = tl.zeros([BN], m.dtype), tl.zeros([BN], m.dtype)
    for v in range(0, V, BV):
        offs_v, z = _block(row, mask_n, bias_ptr, y, v, V, SCALE, SOFTCAP, BV)
        below = z - m[:, None]
        e = tl.exp(below)
        rest += tl.sum(e, 1)
        if entropy_ptr is not None:
            moment += tl.sum(tl.where(e > 0, e * below, 0.0), 1)
        if NARROW:
            e = tl.exp(tl.minimum(z - shift[:, None], 80.0))
        if SOFTCAP is not None:
            e *= tl.where(e > 0, slope(z, SOFTCAP), 0.0)  # 0, not 0 * inf, where z is -inf
        at = e_ptr + (offs_n * stride_en)[:, None] + offs_v[None, :]
        # the downcast of scoring
        mask = mask_n[:, None] & ((offs_v < V) & (store != 0))[None, :]
        tl.store(at, e.to(e_ptr.dtype.element_ty), mask=mask)
    gap = label - m
    label_exp = tl.exp(gap)
    total = rest + label_exp
    logp = log_prob(rest, label_exp, -gap, label)
    poison = tl.where(logp == logp, 1.0, float("nan"))
    tl.store(logp_ptr + offs_n, logp, mask=mask_n)
    tl.store(inverse_ptr + offs_n, poison * tl.exp(shift - m) / total, mask=mask_n)
    tl.store(pull_ptr + offs_n, poison * (rest / total) * slope(label, SOFTCAP), mask=mask_n)
    if entropy_ptr is not None:
        tl.store(entropy_ptr + offs_n, _entropy(rest, moment, gap, logp), mask=mask_n)
        tl.store(is_argmax_ptr + offs_n, label >= top, mask=mask_n)


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
def _maxima(row, mask_n, bias_ptr, y, V, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, NARROW: tl.constexpr,
            BN: tl.constexpr, BV: tl.constexpr):  # fmt: skip
    """The largest z, and of log E' = z + log t (NARROW), over all columns but the label."""
    dtype: tl.constexpr = row.dtype.element_ty
    top, largest = tl.full([BN], float("-inf"), dtype), tl.full([BN], float("-inf"), dtype)
    for v in range(0, V, BV):
        _, z = _block(row, mask_n, bias_ptr, y, v, V, SCALE, SOFTCAP, BV)
        top = tl.maximum(top, tl.max(z, 1))
        if NARROW:
            largest = tl.maximum(largest, tl.max(tl.where(z > float("-inf"), z + tl.log(slope(z, SOFTCAP)), z), 1))
    return top, largest


@triton.jit
def _entropy(rest, moment, gap, logp):
    """H = log S - (sum E (z - top)) / S with the true maximum, the label's included: both terms >= 0."""
    above = tl.maximum(gap, 0.0)
    down, label_exp = tl.exp(-above), tl.exp(tl.minimum(gap, 0.0))
    total = rest * down + label_exp
    crowd = tl.where(rest > 0, (moment - above * rest) * down, 0.0)
    return tl.where(logp == logp, tl.log(total) - (crowd + label_exp * tl.minimum(gap, 0.0)) / total, float("nan"))
