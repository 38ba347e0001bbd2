"""What the objectives on pairs share: the reduction of sums, the difference d, and the checks of their parameters."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

REDUCTIONS = ("sum", "mean")


def unit_slope(lengths: Tensor, logp_reduction: str, temperature: float) -> Tensor:
    """d (reduced logp) / d (summed logp): 1 / temperature, and 1 / length under "mean".  [K, P] -> [K, P]"""
    if logp_reduction == "mean":
        return 1.0 / (lengths * temperature)
    return torch.full_like(lengths, 1.0 / temperature)


def difference(logps: Tensor, slope: Tensor) -> Tensor:
    """d = slope_w logp_w - slope_l logp_l.  [..., 2, P], [2, P] -> [..., P]"""
    reduced = logps * slope
    return reduced[..., 0, :] - reduced[..., 1, :]


def check_number(where: str, name: str, value: object, low: float, high: float, *, open_low: bool) -> None:
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not (low < number if open_low else low <= number) or not number <= high or number == math.inf:
        bracket = "(" if open_low else "["
        upper = "inf)" if high == math.inf else f"{high:g}]"
        raise ValueError(f"{where}: want {name} a number in {bracket}{low:g}, {upper}, got {value!r}")


def check_choice(where: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{where}: want {name} one of {', '.join(choices)}, got {value!r}")
