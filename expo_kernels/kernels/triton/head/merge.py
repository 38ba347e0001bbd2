"""The tiles' sums of a row -> its log-prob, what its gradient needs, and whether it must be redone.

The offset m was the label's logit as labels.py computed it, so E_y is about 1 and S, the sum of all E, is about
1 / p_y: at least 1, and e^40 at an nll of 40. A row with S outside [e^-40, e^40], or not a number, is flagged and its
offset set to its true maximum; fused.py then computes that row again, and this kernel runs once more, for the
flagged rows alone. Partial sums are added tile by tile in a fixed order, so a row's bits are its own.

n rows, J tiles.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from expo_kernels.kernels.custom_ops import new_stats
from expo_kernels.kernels.triton.device import log1p, log_prob, slope
from expo_kernels.kernels.triton.head.fused import Partials

ROWS, COLUMNS = 16, 128
SMALLEST, LARGEST = tl.constexpr(math.exp(-40.0)), tl.constexpr(math.exp(40.0))


class RowResults(NamedTuple):
    """n rows; the gradient's two numbers are NaN where logp is."""

    logp: Tensor  # [n]
    inverse: Tensor  # [n]: d logp / da_v = -inverse E'_v
    pull: Tensor  # [n]: d logp / da_y
    entropy: Tensor  # [n], or empty
    is_argmax: Tensor  # [n] bool, or empty


def new_results(like: Tensor, stats: bool) -> RowResults:
    """like [n, ...]."""
    made = new_stats(like, stats)
    return RowResults(made.logp, torch.empty_like(made.logp), torch.empty_like(made.logp), made.entropy, made.is_argmax)


def merge(
    partials: Partials, label: Tensor, offset: Tensor, flagged: Tensor, softcap: float | None, out: RowResults,
    *, redo: bool,
) -> None:  # fmt: skip
    """label [n] = z_y. Fills out, and flagged [n] int8 and offset [n] for the redo. redo: of the flagged rows only,
    which stay so."""
    n, J = partials.rest.shape
    stats = partials.moment is not None
    _merge[(triton.cdiv(n, ROWS),)](
        label, *partials, offset, flagged,
        out.logp, out.inverse, out.pull, out.entropy if stats else None, out.is_argmax if stats else None,
        n, J, SOFTCAP=softcap, REDO=redo, BN=ROWS, BJ=COLUMNS, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def _merge(
    label_ptr, label_exp_ptr, rest_ptr, peak_ptr, moment_ptr,         # in  [n], [n], then [n, J]
    offset_ptr, flagged_ptr,                                          # in and out [n]
    logp_ptr, inverse_ptr, pull_ptr, entropy_ptr, is_argmax_ptr,      # out [n]
    n, J, SOFTCAP: tl.constexpr, REDO: tl.constexpr, BN: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    offs_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    mask_n = offs_n < n
    if REDO:
        mask_n = tl.load(flagged_ptr + offs_n, mask=mask_n, other=0) != 0
    m = tl.load(offset_ptr + offs_n, mask=mask_n, other=0.0)
    label = tl.load(label_ptr + offs_n, mask=mask_n, other=0.0)
    rest, moment = tl.zeros([BN], m.dtype), tl.zeros([BN], m.dtype)
    top = tl.full([BN], float("-inf"), m.dtype)
    for j in range(0, J, BJ):
        offs_j = j + tl.arange(0, BJ)
        at, mask = offs_n[:, None] * J + offs_j[None, :], mask_n[:, None] & (offs_j < J)[None, :]
        rest += tl.sum(tl.load(rest_ptr + at, mask=mask, other=0.0), 1)
        top = tl.maximum(top, tl.max(tl.load(peak_ptr + at, mask=mask, other=float("-inf")), 1))
        if moment_ptr is not None:
            moment += tl.sum(tl.load(moment_ptr + at, mask=mask, other=0.0), 1)
    label_exp = tl.load(label_exp_ptr + offs_n, mask=mask_n, other=1.0)
    total = rest + label_exp
    logp = log_prob(rest, label_exp, m - label, label)
    poison = tl.where(logp == logp, 1.0, float("nan"))
    tl.store(logp_ptr + offs_n, logp, mask=mask_n)
    tl.store(inverse_ptr + offs_n, poison / total, mask=mask_n)
    tl.store(pull_ptr + offs_n, poison * (rest / total) * slope(label, SOFTCAP), mask=mask_n)
    if not REDO:
        flagged = ((total >= SMALLEST) & (total <= LARGEST)) == 0
        tl.store(flagged_ptr + offs_n, flagged.to(tl.int8), mask=mask_n)
        tl.store(offset_ptr + offs_n, tl.where(flagged, top, m), mask=mask_n)
    if moment_ptr is not None:
        # H = log S - (sum E (z - m)) / S; where m is about z_y, log S from its small parts
        log_total = tl.where(label_exp > 0.5, log1p(rest / label_exp) + tl.log(label_exp), tl.log(total))
        entropy = log_total - moment / total
        entropy = tl.where(logp == logp, entropy, float("nan"))
        tl.store(entropy_ptr + offs_n, entropy, mask=mask_n)
        tl.store(is_argmax_ptr + offs_n, label_exp >= tl.exp(top - m), mask=mask_n)
