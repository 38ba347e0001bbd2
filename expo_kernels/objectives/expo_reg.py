"""EXPO, the regression loss: arXiv 2506.07492, eq. 17 to 19 (docs/math.md, part 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from expo_kernels.objectives.parts.checks import check_choice, check_number
from expo_kernels.objectives.parts.pairs import REDUCTIONS, difference, on_margin, unit_slope
from expo_kernels.types import Needs, PairForm, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class ExpoReg:
    """EXPO, regression. p = s(d) is regressed on lam p_ref + (1 - lam), with d = logp_w - logp_l.

        loss = (s(-d) - lam s(-d_ref))^2
        d loss / d logp_w = -2 (s(-d) - lam s(-d_ref)) s(d) s(-d) = - d loss / d logp_l

    This is (p - [lam p_ref + (1 - lam)])^2 without the cancelling 1 - p. lam in [0, 1]: 0 is the Bradley-Terry end, 1
    keeps the reference. logp_reduction ("sum", the paper's, or "mean"), temperature (which divides them) and offset
    (which is then taken off, a margin that the chosen response must win by) act on d and d_ref alike; the last two are
    not the paper's. The reward is the policy's own reduced log-prob, the margin is d.
    """

    paper: ClassVar[str] = "2506.07492, eq. 17-19"
    formula: ClassVar[str] = "(s(-d) - lam s(-d_ref))^2"

    lam: float
    logp_reduction: str = "sum"
    temperature: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        check_number("expo_reg", "lam", self.lam, 0.0, 1.0)
        check_number("expo_reg", "temperature", self.temperature, open_low=True)
        check_number("expo_reg", "offset", self.offset, -math.inf)
        check_choice("expo_reg", "logp_reduction", self.logp_reduction, REDUCTIONS)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, lengths=self.logp_reduction == "mean")

    @property
    def pair_form(self) -> PairForm | None:
        """No kernel has the offset."""
        form = PairForm("expo_reg", self.lam, 0.0, self.logp_reduction == "mean", self.temperature)
        return None if self.offset else form

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        assert logps.reference is not None, "the engine passes what is declared"
        slope = unit_slope(logps.lengths, self.logp_reduction, 1.0 / self.temperature)  # [2, P]
        rewards = logps.policy * slope
        d = difference(rewards) - self.offset  # [P]
        gap = torch.sigmoid(-d) - self.lam * torch.sigmoid(self.offset - difference(logps.reference * slope))
        step = -2.0 * gap * torch.sigmoid(d) * torch.sigmoid(-d)
        return on_margin(gap.square(), step, slope, rewards, d)
