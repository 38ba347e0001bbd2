"""The pair kernel: masked (weighted) sequence sums, the EXPO loss and its coefficients, settled, in one launch.

    u = 1 / temperature, or 1 / (length temperature)     d = u_w logp_w - u_l logp_l     s = the logistic function
    expo_reg     gap = s(-d) - lam s(-d_ref)     loss = gap^2                     step = -2 gap s(d) s(-d)
    expo_comp    loss = softplus(-d) - pull (logp_w + logp_l)                     step = -s(-d)
    coefficients  (u_w step - pull, -u_l step - pull)                             pull = 0 for expo_reg

Loss and coefficients of a pair with an empty side are 0, and NaN where a sum or a reference is not finite, as
ops/evaluate.py has it for every other objective. The same formulas in torch stand in expo_kernels/objectives, for every
other backend; a test holds the two equal. Masked tokens are not in a batch at all; weights are the tokens' own. One
program a pair; its tokens are contiguous, chosen first. G pairs, n tokens. fp32; float64 log-probs take the torch
formula.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from expo_kernels.kernels.triton.device import is_finite, log1p
from expo_kernels.kernels.triton.sequences.segments import TOKENS, segment_total
from expo_kernels.types import PairForm

NAMES = ("expo_reg", "expo_comp")


class PairResults(NamedTuple):
    policy: Tensor  # [2, G] sums
    loss: Tensor  # [G]
    coefficients: Tensor  # [2, G]
    rewards: Tensor  # [2, G]
    margin: Tensor  # [G]


def new_pair_results(logp: Tensor, G: int) -> PairResults:
    return PairResults(
        *(logp.new_empty(shape) for shape in ((2, G), (G,), (2, G), (2, G), (G,))),
    )


def pair_terms(
    form: PairForm, logp: Tensor, weights: Tensor | None, offsets: Tensor, lengths: Tensor, reference: Tensor | None
) -> PairResults:
    """logp [n], weights [n], offsets [2 G + 1] (pair by pair, chosen first), lengths and reference [2, G]."""
    G = lengths.shape[1]
    out = new_pair_results(logp, G)
    if G:
        _pair_terms[(G,)](
            logp, weights, offsets, lengths, reference, *out, G, lengths.stride(0), lengths.stride(1),
            0 if reference is None else reference.stride(0), 0 if reference is None else reference.stride(1),
            form.lam, form.pull, form.temperature,
            REGRESSION=form.name == "expo_reg", MEAN=form.mean, BT=TOKENS, num_warps=4,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["G", "lam", "pull", "temperature"])
def _pair_terms(
    logp_ptr, weights_ptr, offsets_ptr, lengths_ptr, reference_ptr,                 # in
    policy_ptr, loss_ptr, coefficients_ptr, rewards_ptr, margin_ptr,                # out
    G, stride_lk, stride_lg, stride_rk, stride_rg, lam, pull, temperature,
    REGRESSION: tl.constexpr, MEAN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(0).to(tl.int64)
    chosen = segment_total(logp_ptr, weights_ptr, offsets_ptr, 2 * g, BT).to(tl.float32)
    rejected = segment_total(logp_ptr, weights_ptr, offsets_ptr, 2 * g + 1, BT).to(tl.float32)
    # an empty sequence has length 1 here, so that a mean is 0 and not 0 / 0
    tokens_w, tokens_l = tl.load(lengths_ptr + g * stride_lg), tl.load(lengths_ptr + stride_lk + g * stride_lg)
    length_w, length_l = tl.maximum(tokens_w, 1).to(tl.float32), tl.maximum(tokens_l, 1).to(tl.float32)
    unit_w = 1.0 / (length_w * temperature) if MEAN else 1.0 / temperature + 0.0 * length_w
    unit_l = 1.0 / (length_l * temperature) if MEAN else 1.0 / temperature + 0.0 * length_l
    d = chosen * unit_w - rejected * unit_l
    right, wrong = logistic_pair(d)
    finite = is_finite(chosen) & is_finite(rejected)
    if reference_ptr is not None:
        reference_w = tl.load(reference_ptr + g * stride_rg).to(tl.float32)
        reference_l = tl.load(reference_ptr + stride_rk + g * stride_rg).to(tl.float32)
        finite = finite & is_finite(reference_w) & is_finite(reference_l)
    if REGRESSION:
        _, wrong_reference = logistic_pair(reference_w * unit_w - reference_l * unit_l)
        gap = wrong - lam * wrong_reference
        loss, step = gap * gap, -2.0 * gap * right * wrong
    else:
        loss = log1p(tl.exp(-tl.abs(d))) - tl.minimum(d, 0.0) - pull * (chosen + rejected)
        step = -wrong
    tl.store(policy_ptr + g, chosen)
    tl.store(policy_ptr + G + g, rejected)
    active = (tokens_w > 0) & (tokens_l > 0)
    tl.store(loss_ptr + g, _settled(loss, active, finite))
    tl.store(coefficients_ptr + g, _settled(step * unit_w - pull, active, finite))
    tl.store(coefficients_ptr + G + g, _settled(-step * unit_l - pull, active, finite))
    tl.store(rewards_ptr + g, chosen * unit_w)
    tl.store(rewards_ptr + G + g, rejected * unit_l)
    tl.store(margin_ptr + g, d)


@triton.jit
def _settled(x, active, finite):
    return tl.where(finite, tl.where(active, x, 0.0), float("nan"))


@triton.jit
def logistic_pair(d):
    """s(d) and s(-d), neither by 1 - s: the small one keeps its precision."""
    e = tl.exp(-tl.abs(d))
    large, small = 1.0 / (1.0 + e), e / (1.0 + e)
    return tl.where(d < 0, small, large), tl.where(d < 0, large, small)
