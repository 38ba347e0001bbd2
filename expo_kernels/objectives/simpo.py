"""SimPO: arXiv 2405.14734, eq. 6."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import difference, on_margin, unit_slope
from expo_kernels.objectives.parts.shapes import noisy_logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class SimPO:
    """SimPO. Mean log-probs, no reference, a margin to win by.

        loss = -log s(m - margin)      m = beta (logp_w / |w| - logp_l / |l|)
        d loss / d logp_w = -beta s(margin - m) / |w|      d loss / d logp_l = beta s(margin - m) / |l|

    margin is the paper's gamma; gamma_beta_ratio gives it as a multiple of beta. label_smoothing as in dpo. The
    defaults are those that the EXPO paper compares with (TRL and Liger: beta 0.1, margin 0.5). The reward is beta times
    the mean log-prob, the margin of the output is m (without the parameter `margin`).
    """

    paper: ClassVar[str] = "2405.14734, eq. 6"
    formula: ClassVar[str] = "-log s(beta (mean_w - mean_l) - margin)"
    also_called: ClassVar[dict[str, str]] = {"gamma": "margin", "simpo_gamma": "margin"}

    beta: float = 2.0
    margin: float | None = None  # None: 1, or what gamma_beta_ratio says
    gamma_beta_ratio: float | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_number("simpo", "beta", self.beta, open_low=True)
        check_number("simpo", "label_smoothing", self.label_smoothing, 0.0, 0.5, open_high=True)
        if self.margin is not None and self.gamma_beta_ratio is not None:
            raise ValueError(
                f"simpo: want margin or gamma_beta_ratio, got both ({self.margin!r} and {self.gamma_beta_ratio!r})"
            )
        for name in ("margin", "gamma_beta_ratio"):
            if getattr(self, name) is not None:
                check_number("simpo", name, getattr(self, name), -math.inf)

    @property
    def target(self) -> float:
        """The margin to win by."""
        if self.gamma_beta_ratio is not None:
            return self.gamma_beta_ratio * self.beta
        return 1.0 if self.margin is None else self.margin

    @property
    def needs(self) -> Needs:
        return Needs(lengths=True)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        slope = unit_slope(logps.lengths, "mean", self.beta)
        rewards = logps.policy * slope
        margin = difference(rewards)
        return on_margin(*noisy_logistic(margin - self.target, self.label_smoothing), slope, rewards, margin)
