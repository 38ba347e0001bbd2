"""EXPO, the regression loss: arXiv 2506.07492, eq. 17 to 19 (docs/math.md, part 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from expo_kernels.objectives.pairs import REDUCTIONS, check_choice, check_number, difference, unit_slope
from expo_kernels.types import Needs, PairForm, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class ExpoReg:
    """p = s(d) is regressed on lam p_ref + (1 - lam), with d = logp_w - logp_l and s the logistic function.

        loss = (s(-d) - lam s(-d_ref))^2
        d loss / d logp_w = -2 (s(-d) - lam s(-d_ref)) s(d) s(-d) = - d loss / d logp_l

    This is (p - [lam p_ref + (1 - lam)])^2 without the cancelling 1 - p. lam in [0, 1]: 0 is the Bradley-Terry end, 1
    keeps the reference. logp_reduction ("sum", the paper's, or "mean") and temperature act on d and d_ref alike.
    The reward is the policy's own reduced log-prob, the margin is d.
    """

    lam: float
    logp_reduction: str = "sum"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_number("expo_reg", "lam", self.lam, 0.0, 1.0, open_low=False)
        check_number("expo_reg", "temperature", self.temperature, 0.0, math.inf, open_low=True)
        check_choice("expo_reg", "logp_reduction", self.logp_reduction, REDUCTIONS)

    @property
    def needs(self) -> Needs:
        return Needs(roles=2, reference=True, lengths=self.logp_reduction == "mean")

    @property
    def pair_form(self) -> PairForm:
        return PairForm("expo_reg", self.lam, 0.0, self.logp_reduction == "mean", self.temperature)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        assert logps.reference is not None, "the engine passes what is declared"
        slope = unit_slope(logps.lengths, self.logp_reduction, self.temperature)  # [2, P]
        d = difference(logps.policy, slope)  # [P]
        gap = torch.sigmoid(-d) - self.lam * torch.sigmoid(-difference(logps.reference, slope))
        step = -2.0 * gap * torch.sigmoid(d) * torch.sigmoid(-d)
        return Terms(
            loss=gap.square(),
            coefficients=torch.stack([step, -step]) * slope,
            rewards=logps.policy * slope,
            margin=d,
        )
