"""In-context ranking preference optimisation: after arXiv 2504.15477."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import log_ratios
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class IRPO:
    """IRPO. A ranked list; each response beats all others together, and counts by its gain and its position.

        loss = -sum_k a_k log s(x_k)      a_k = gain_k / log2(1 + k)
        x_k = -log sum_{j != k} e^{beta (rho_j - rho_k)}, hence s(x_k) = softmax_k(beta rho) = p_k
        d loss / d logp_k = beta (p_k sum_j a_j - a_k)

    Roles are positions, k = 1, 2, ... Column gain, K P numbers >= 0 in that order: the relevance of the response at
    that position (0/1 marks, or 2^grade - 1 as in NDCG). rho = logp - ref. The reward is beta rho.
    """

    paper: ClassVar[str] = "2504.15477"
    formula: ClassVar[str] = "-sum_k gain_k / log2(1 + k) log softmax_k(beta rho)"

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_number("irpo", "beta", self.beta, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs(roles=None, reference=True, sequence_columns=("gain",))

    def check_columns(self, columns: Mapping[str, Tensor]) -> None:
        if bool((columns["gain"] < 0).any()):
            raise ValueError(f"want no gain below 0, got {columns['gain'].min().item()}")

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * log_ratios(logps)  # [K, P]
        position = torch.arange(2, rewards.shape[0] + 2, device=rewards.device, dtype=rewards.dtype)
        gain = logps.columns["gain"]
        gain = torch.where(gain >= 0, gain, torch.nan)  # a device's values are not checked before
        weights = gain / position.log2()[:, None]
        logp = torch.log_softmax(rewards, 0)
        slope = logp.exp() * weights.sum(0) - weights
        return Terms(-(weights * logp).sum(0), self.beta * slope, rewards)
