"""GPO, a family of convex losses: arXiv 2402.05749, table 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expo_kernels.objectives.parts.checks import check_choice, check_number
from expo_kernels.objectives.parts.pairs import REDUCTIONS, difference, log_ratios, on_margin, unit_slope
from expo_kernels.objectives.parts.shapes import SHAPES
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class GPO:
    """GPO. Any of six shapes f of the difference of implicit rewards.

        loss = f(m)      m = beta (rho_w - rho_l)      rho = logp - ref
        d loss / d logp_w = beta f'(m) = - d loss / d logp_l

        logistic              log(1 + e^-m)     (DPO)          exponential           e^-m, its tangent from m = -20 down
        hinge                 max(0, 1 - m)     (SLiC)         truncated_quadratic   max(0, 1 - m)^2
        squared               (m - 1)^2         (IPO)          savage                s(-m)^2

    logp_reduction "mean" divides each rho by its response's length. The reward is beta rho.
    """

    paper: ClassVar[str] = "2402.05749, table 1"
    formula: ClassVar[str] = "f(beta (rho_w - rho_l))"

    shape: str
    beta: float = 0.1
    logp_reduction: str = "sum"

    def __post_init__(self) -> None:
        check_choice("gpo", "shape", self.shape, tuple(SHAPES))
        check_number("gpo", "beta", self.beta, open_low=True)
        check_choice("gpo", "logp_reduction", self.logp_reduction, REDUCTIONS)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, lengths=self.logp_reduction == "mean")

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        slope = unit_slope(logps.lengths, self.logp_reduction, self.beta)
        rewards = log_ratios(logps) * slope
        margin = difference(rewards)
        return on_margin(*SHAPES[self.shape](margin), slope, rewards, margin)
