"""Losses as functions of one number, the margin x: each returns its value and its slope, stable at any x."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

EXPONENT_LIMIT = 20.0  # where an exponential goes on as its tangent, so that fp32 holds it at any finite margin


class Shape(NamedTuple):
    value: Tensor  # [P]
    slope: Tensor  # [P]


def logistic(x: Tensor) -> Shape:
    """-log s(x) = log(1 + e^-x)."""
    return Shape(-logsigmoid(x), -torch.sigmoid(-x))


def noisy_logistic(x: Tensor, label_smoothing: float, robust: bool = False) -> Shape:
    """Labels flipped with probability e: (1 - e) f(x) + e f(-x), or, unbiased under that noise (robust),
    ((1 - e) f(x) - e f(-x)) / (1 - 2 e), with the logistic f."""
    right, wrong = logistic(x), logistic(-x)
    keep, flip = 1.0 - label_smoothing, -label_smoothing if robust else label_smoothing
    scale = 1.0 / (1.0 - 2.0 * label_smoothing) if robust else 1.0
    return Shape(scale * (keep * right.value + flip * wrong.value), scale * (keep * right.slope - flip * wrong.slope))


def hinge(x: Tensor) -> Shape:
    """max(0, 1 - x)."""
    return Shape((1.0 - x).clamp(min=0.0), torch.where(x < 1.0, -1.0, 0.0).to(x.dtype))


def squared(x: Tensor) -> Shape:
    """(x - 1)^2."""
    return Shape((x - 1.0).square(), 2.0 * (x - 1.0))


def truncated_quadratic(x: Tensor) -> Shape:
    """max(0, 1 - x)^2."""
    short = (1.0 - x).clamp(min=0.0)
    return Shape(short.square(), -2.0 * short)


def savage(x: Tensor) -> Shape:
    """s(-x)^2 = 1 / (1 + e^x)^2."""
    wrong = torch.sigmoid(-x)
    return Shape(wrong.square(), -2.0 * wrong.square() * torch.sigmoid(x))


def exponential(x: Tensor) -> Shape:
    """e^-x, and its tangent from x = -20 down."""
    grown = limited_exp(-x)
    return Shape(grown.value, -grown.slope)


def limited_exp(x: Tensor) -> Shape:
    """e^x, and from x = 20 on its tangent there: the slope saturates at e^20."""
    slope = x.clamp(max=EXPONENT_LIMIT).exp()
    return Shape(slope * (1.0 + (x - EXPONENT_LIMIT).clamp(min=0.0)), slope)


SHAPES: Mapping[str, Callable[[Tensor], Shape]] = {
    "logistic": logistic,
    "hinge": hinge,
    "squared": squared,
    "exponential": exponential,
    "truncated_quadratic": truncated_quadratic,
    "savage": savage,
}
