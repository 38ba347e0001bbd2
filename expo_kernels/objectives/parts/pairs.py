"""What the objectives share between sums of log-probs and a margin: reductions, ratios to the reference, slopes."""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.types import SequenceLogprobs, Terms

REDUCTIONS = ("sum", "mean")


def unit_slope(lengths: Tensor, logp_reduction: str, factor: float = 1.0) -> Tensor:
    """d (factor * reduced logp) / d (summed logp): factor, and factor / length under "mean".  [K, P] -> [K, P]"""
    if logp_reduction == "mean":
        return factor / lengths
    return torch.ones_like(lengths) * factor


def log_ratios(logps: SequenceLogprobs) -> Tensor:
    """rho = logp - reference logp, of sums.  -> [K, P], or [R, K, P] with several references"""
    assert logps.reference is not None, "the engine passes what is declared"
    return logps.policy - logps.reference


def difference(values: Tensor) -> Tensor:
    """Of the first role and the second.  [..., 2, P] -> [..., P]"""
    return values[..., 0, :] - values[..., 1, :]


def on_margin(loss: Tensor, step: Tensor, slope: Tensor | float, rewards: Tensor, margin: Tensor) -> Terms:
    """The terms of a loss that sees a pair's margin alone: step = d loss / d margin [P], and slope, a number or [2, P],
    the derivative of the margin by logp_w and, but for its sign, by logp_l."""
    return Terms(loss=loss, coefficients=torch.stack([step, -step]) * slope, rewards=rewards, margin=margin)
