"""Weighted-reward preference optimisation, for fusing models: arXiv 2412.03187."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import log_ratios
from expo_kernels.objectives.parts.shapes import logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class WRPO:
    """WRPO. Three responses: a source model's best, the target model's own best, and the target's worst.

        loss = -log s(m)      m = beta (alpha rho_source + (1 - alpha) rho_target - rho_rejected)      rho = logp - ref
        d loss / d logp = -beta s(-m) (alpha, 1 - alpha, -1)

    Roles in this order. alpha in [0, 1] is raised from 0 while training, in the paper to 0.1: a new objective each
    time costs nothing. The reward is beta rho.
    """

    paper: ClassVar[str] = "2412.03187"
    formula: ClassVar[str] = "-log s(beta (alpha rho_s + (1 - alpha) rho_t - rho_l))"

    beta: float = 0.1
    alpha: float = 0.1

    def __post_init__(self) -> None:
        check_number("wrpo", "beta", self.beta, open_low=True)
        check_number("wrpo", "alpha", self.alpha, 0.0, 1.0)

    @property
    def needs(self) -> Needs:
        return Needs(roles=3, reference=True)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * log_ratios(logps)
        shares = (self.alpha, 1.0 - self.alpha, -1.0)
        margin = shares[0] * rewards[0] + shares[1] * rewards[1] - rewards[2]
        right = logistic(margin)
        step = self.beta * right.slope
        return Terms(right.value, torch.stack([share * step for share in shares]), rewards, margin)
