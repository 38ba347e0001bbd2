"""Sums of token log-probs over sequences: in float64, a segment on its own, one cast.

S segments of n values.
"""

import triton
import triton.language as tl
from torch import Tensor

TOKENS = 256


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """values [n], offsets [S + 1] -> [S]."""
    S = offsets.shape[0] - 1
    out = values.new_empty(S)
    if S:
        _segment_sum[(S,)](values, offsets, out, BT=TOKENS, num_warps=4)
    return out


@triton.jit
def _segment_sum(values_ptr, offsets_ptr, out_ptr, BT: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    total = segment_total(values_ptr, None, offsets_ptr, s, BT)
    tl.store(out_ptr + s, total.to(out_ptr.dtype.element_ty))


@triton.jit
def segment_total(values_ptr, weights_ptr, offsets_ptr, s, BT: tl.constexpr):
    """The (weighted) sum of segment s in float64. Blocks start where the segment does, so its bits are its own."""
    begin, end = tl.load(offsets_ptr + s), tl.load(offsets_ptr + s + 1)
    total = tl.zeros([BT], tl.float64)
    for at in range(begin, end, BT):
        offs = at + tl.arange(0, BT)
        value = tl.load(values_ptr + offs, mask=offs < end, other=0.0)
        if weights_ptr is not None:
            value = value * tl.load(weights_ptr + offs, mask=offs < end, other=0.0).to(value.dtype)
        total += value.to(tl.float64)
    return tl.sum(total, 0)
