"""Imitation of the chosen response, the term that many objectives add: -weight * logp of the first role."""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.objectives.parts.checks import check_choice, check_number
from expo_kernels.types import Needs, SequenceLogprobs

# "tokens": a mean over the batch's chosen tokens; "mean": over each response's own; "sum": the sequence's sum
SFT_REDUCTIONS = ("tokens", "mean", "sum")


def sft_slope(logps: SequenceLogprobs, reduction: str) -> Tensor:
    """d (reduced logp of the first role) / d (its sum) [P], where groups' losses are averaged afterwards."""
    if reduction == "mean":
        return 1.0 / logps.lengths[0]
    if reduction == "tokens":
        # the caller divides by groups, so that what is left is a division by tokens
        return torch.ones_like(logps.lengths[0]) * (logps.divisors.groups / logps.divisors.tokens)
    return torch.ones_like(logps.lengths[0])


def add_sft(loss: Tensor, coefficients: Tensor, logps: SequenceLogprobs, slope: Tensor) -> tuple[Tensor, Tensor]:
    """slope [P] = weight * sft_slope -> loss [P] - slope * logp, and coefficients [K, P] to match."""
    first = torch.zeros_like(coefficients)
    first[0] = slope
    return loss - slope * logps.policy[0], coefficients - first


def sft_needs(reduction: str) -> Needs:
    """What the term itself asks for."""
    return Needs(lengths=reduction == "mean", mixes_divisors=reduction == "tokens")


def check_sft(where: str, weight: object, reduction: object) -> None:
    check_number(where, "sft_weight", weight)
    check_choice(where, "sft_reduction", reduction, SFT_REDUCTIONS)
