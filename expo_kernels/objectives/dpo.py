"""DPO and its versions for noisy labels: arXiv 2305.18290, eq. 7; cDPO; robust DPO, arXiv 2403.00409."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expo_kernels.objectives.parts.checks import check_bool, check_choice, check_number
from expo_kernels.objectives.parts.pairs import REDUCTIONS, difference, log_ratios, on_margin, unit_slope
from expo_kernels.objectives.parts.shapes import noisy_logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class DPO:
    """DPO. The logistic loss of the difference of implicit rewards, beta rho.

        loss = -log s(m)      m = beta (rho_w - rho_l)      rho = logp - ref
        d loss / d logp_w = -beta s(-m) = - d loss / d logp_l

    label_smoothing e in [0, 1/2), the share of labels believed wrong: (1 - e) f(m) + e f(-m) with f = -log s (cDPO), or
    with robust=True the estimate that such noise leaves unbiased, ((1 - e) f(m) - e f(-m)) / (1 - 2 e).
    logp_reduction "mean" divides each rho by its response's length. The reward is beta rho.
    """

    paper: ClassVar[str] = "2305.18290, eq. 7; robust: 2403.00409"
    formula: ClassVar[str] = "-log s(beta (rho_w - rho_l))"

    beta: float = 0.1
    label_smoothing: float = 0.0
    robust: bool = False
    logp_reduction: str = "sum"

    def __post_init__(self) -> None:
        check_number("dpo", "beta", self.beta, open_low=True)
        check_number("dpo", "label_smoothing", self.label_smoothing, 0.0, 0.5, open_high=True)
        check_bool("dpo", "robust", self.robust)
        check_choice("dpo", "logp_reduction", self.logp_reduction, REDUCTIONS)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, lengths=self.logp_reduction == "mean")

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        slope = unit_slope(logps.lengths, self.logp_reduction, self.beta)
        rewards = log_ratios(logps) * slope
        margin = difference(rewards)
        return on_margin(*noisy_logistic(margin, self.label_smoothing, self.robust), slope, rewards, margin)
