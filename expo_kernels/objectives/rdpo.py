"""R-DPO, DPO with a penalty on length: arXiv 2403.19159."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import difference, log_ratios, on_margin
from expo_kernels.objectives.parts.shapes import logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class RDPO:
    """R-DPO. DPO for the reward less alpha times the length, in tokens.

        loss = -log s(m + alpha (|w| - |l|))      m = beta (rho_w - rho_l)      rho = logp - ref
        d loss / d logp_w = -beta s(-m - alpha (|w| - |l|)) = - d loss / d logp_l

    A pair whose chosen response is the longer one is partly explained by its length, and teaches less. The reward is
    beta rho, the margin is m.
    """

    paper: ClassVar[str] = "2403.19159"
    formula: ClassVar[str] = "-log s(beta (rho_w - rho_l) + alpha (|w| - |l|))"

    beta: float = 0.1
    alpha: float = 0.01

    def __post_init__(self) -> None:
        check_number("rdpo", "beta", self.beta, open_low=True)
        check_number("rdpo", "alpha", self.alpha, -math.inf)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * log_ratios(logps)
        margin = difference(rewards)
        longer = difference(logps.lengths)
        return on_margin(*logistic(margin + self.alpha * longer), self.beta, rewards, margin)
