"""IPO: arXiv 2310.12036, eq. 17."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expo_kernels.objectives.parts.checks import check_choice, check_number
from expo_kernels.objectives.parts.pairs import REDUCTIONS, difference, log_ratios, on_margin, unit_slope
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class IPO:
    """IPO. The difference of log-ratios is regressed on 1 / (2 beta); beta is the paper's tau.

        loss = (g - 1 / (2 beta))^2      g = rho_w - rho_l      rho = logp - ref
        d loss / d logp_w = 2 (g - 1 / (2 beta)) = - d loss / d logp_l

    logp_reduction "mean", as TRL has it, divides each rho by its response's length. The reward is beta rho.
    """

    paper: ClassVar[str] = "2310.12036, eq. 17"
    formula: ClassVar[str] = "(rho_w - rho_l - 1 / (2 beta))^2"
    also_called: ClassVar[dict[str, str]] = {"tau": "beta"}

    beta: float = 0.1
    logp_reduction: str = "sum"

    def __post_init__(self) -> None:
        check_number("ipo", "beta", self.beta, open_low=True)
        check_choice("ipo", "logp_reduction", self.logp_reduction, REDUCTIONS)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, lengths=self.logp_reduction == "mean")

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        slope = unit_slope(logps.lengths, self.logp_reduction)
        reduced = log_ratios(logps) * slope
        off = difference(reduced) - 1.0 / (2.0 * self.beta)
        rewards = self.beta * reduced
        return on_margin(off.square(), 2.0 * off, slope, rewards, difference(rewards))
