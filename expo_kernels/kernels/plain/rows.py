"""A few rows at a time: logits -> exponentials, row sums, the label's entry (docs/math.md, part 2).

n rows (a multiple of the product's, the last ones padding), D hidden, V vocabulary; everything in the accumulator's
dtype. z [n, V] is worked on in place: logits first, exponentials after.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from expo_kernels.kernels.plain.budget import SLICES


class RowSums(NamedTuple):
    offset: Tensor  # [n] m, the row's true maximum
    label: Tensor  # [n] z_y
    label_exp: Tensor  # [n] E_y = exp(z_y - m)
    rest: Tensor  # [n] the sum of E over all columns but y: summed without y, never by subtraction
    moment: Tensor  # [n] the sum of E * (z - m), or empty

    @property
    def total(self) -> Tensor:
        return self.rest + self.label_exp


def transform(a: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    """a [n, k] = h w^T -> z in place; returns [n]: 0, or NaN where the cap would hide an infinity."""
    hidden = a.new_zeros(a.shape[0])
    if bias is not None:
        a.add_(bias.to(a.dtype))
    if scale != 1.0:
        a.mul_(scale)
    if softcap is not None:
        hidden = a.sum(-1) * 0.0
        a.div_(softcap).tanh_().mul_(softcap)
    return hidden


def exponentials(z: Tensor, y: Tensor, softcap: float | None, *, gradient: bool, moment: bool) -> RowSums:
    """z [n, V] -> E = exp(z - m) in place, with 0 at the label and, for the gradient, times t = 1 - (z / cap)^2."""
    n, V = z.shape
    m = z.amax(-1)
    label = z.gather(1, y[:, None])[:, 0]
    label_exp, rest, mean = z.new_zeros(n), z.new_zeros(n), z.new_zeros(n if moment else 0)
    width = -(-V // SLICES)
    for v in range(0, V, width):
        e = z[:, v : v + width]
        slope = cap_slope(e, softcap) if gradient and softcap is not None else None
        shifted = e.sub_(m[:, None]).clone() if moment else e.sub_(m[:, None])
        e.exp_()
        if moment:
            mean += torch.where(e > 0, shifted.mul_(e), 0.0).sum(-1)
        label_exp += take_label(e, y - v)
        rest += e.sum(-1)
        if slope is not None:
            e.mul_(slope)
    return RowSums(m, label, label_exp, rest, mean)


def cap_slope(z: Tensor, softcap: float) -> Tensor:
    """t = dz / da = 1 - (z / cap)^2."""
    return (z / softcap).square_().neg_().add_(1.0)


def take_label(e: Tensor, column: Tensor) -> Tensor:
    """The label's exponential where its column lies in this slice, else 0; the entry itself becomes 0."""
    inside = (column >= 0) & (column < e.shape[1])
    at = column.clamp(0, e.shape[1] - 1)[:, None]
    found = e.gather(1, at)
    e.scatter_(1, at, torch.where(inside[:, None], 0.0, found))
    return torch.where(inside, found[:, 0], 0.0)


def label_pull(sums: RowSums, softcap: float | None) -> Tensor:
    """d logp / da_y = (rest / S) t_y, which is (1 - p_y) t_y without its cancellation, however certain the label is."""
    pull = sums.rest / sums.total
    return pull if softcap is None else pull * cap_slope(sums.label, softcap)


def log_prob(sums: RowSums, finite: Tensor) -> Tensor:
    """logp = -log1p(rest / E_y), which keeps nll down to the smallest; for an improbable label, where that quotient
    could overflow, -(log S + (m - z_y)), a sum of two terms >= 0. NaN where any part is not finite."""
    likely = torch.log1p(sums.rest / sums.label_exp)
    unlikely = sums.total.log() + (sums.offset - sums.label)
    nll = torch.where(sums.label_exp > 0.5, likely, unlikely)
    return torch.where(finite & nll.isfinite() & sums.total.isfinite(), -nll, torch.nan)


def entropy(sums: RowSums, logp: Tensor) -> Tensor:
    """H = log S - (sum E (z - m)) / S: both terms >= 0. NaN where logp is."""
    return torch.where(logp.isnan(), torch.nan, sums.total.log() - sums.moment / sums.total)
