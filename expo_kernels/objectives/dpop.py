"""DPO-Positive, of Smaug: arXiv 2402.13228, eq. 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import difference, log_ratios
from expo_kernels.objectives.parts.shapes import logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class DPOP:
    """DPO-Positive. DPO that loses where the chosen response falls below the reference.

        loss = -log s(m)      m = beta (rho_w - rho_l - lam max(0, -rho_w))      rho = logp - ref
        d loss / d logp_w = -beta s(-m) (1 + lam [rho_w < 0])      d loss / d logp_l = beta s(-m)

    The reward is beta rho, the margin is m.
    """

    paper: ClassVar[str] = "2402.13228, eq. 3"
    formula: ClassVar[str] = "-log s(beta (rho_w - rho_l - lam max(0, -rho_w)))"

    beta: float = 0.1
    lam: float = 50.0

    def __post_init__(self) -> None:
        check_number("dpop", "beta", self.beta, open_low=True)
        check_number("dpop", "lam", self.lam)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rho = log_ratios(logps)
        margin = self.beta * (difference(rho) - self.lam * (-rho[0]).clamp(min=0.0))
        right = logistic(margin)
        step = self.beta * right.slope
        chosen = step * (1.0 + self.lam * (rho[0] < 0).to(step.dtype))
        return Terms(right.value, torch.stack([chosen, -step]), self.beta * rho, margin)
