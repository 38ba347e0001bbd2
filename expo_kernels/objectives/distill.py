"""Reward-model distillation: arXiv 2405.19316."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import difference, log_ratios, on_margin
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Reward distillation. The implicit margin is regressed on a reward model's gap (REBEL regresses likewise).

        loss = (m - gap)^2      m = beta (rho_w - rho_l)      rho = logp - ref
        d loss / d logp_w = 2 beta (m - gap) = - d loss / d logp_l

    Column gap [P]: reward of the first response less that of the second, of either sign. The reward is beta rho.
    """

    paper: ClassVar[str] = "2405.19316"
    formula: ClassVar[str] = "(beta (rho_w - rho_l) - gap)^2"

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_number("distill", "beta", self.beta, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, columns=("gap",))

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * log_ratios(logps)
        margin = difference(rewards)
        off = margin - logps.columns["gap"]
        return on_margin(off.square(), 2.0 * off, self.beta, rewards, margin)
