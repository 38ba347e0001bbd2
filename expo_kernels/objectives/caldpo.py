"""Cal-DPO: arXiv 2412.14516."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import difference, log_ratios
from expo_kernels.objectives.parts.shapes import logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class CalDPO:
    """Cal-DPO. The preference loss on the log-ratios themselves, each of them calibrated to +-1 / (2 beta).

        loss = -log s(g) + (rho_w - t)^2 + (rho_l + t)^2      g = rho_w - rho_l      t = 1 / (2 beta)
        d loss / d logp_w = -s(-g) + 2 (rho_w - t)      d loss / d logp_l = s(-g) + 2 (rho_l + t)

    The reward is beta rho, the margin is beta g.
    """

    paper: ClassVar[str] = "2412.14516"
    formula: ClassVar[str] = "-log s(g) + (rho_w - t)^2 + (rho_l + t)^2, t = 1 / (2 beta)"

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_number("caldpo", "beta", self.beta, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rho, target = log_ratios(logps), 1.0 / (2.0 * self.beta)
        right = logistic(difference(rho))
        off = torch.stack([rho[0] - target, rho[1] + target])
        return Terms(
            loss=right.value + off.square().sum(0),
            coefficients=torch.stack([right.slope, -right.slope]) + 2.0 * off,
            rewards=self.beta * rho,
            margin=self.beta * difference(rho),
        )
