"""EXPO, the compositional loss: arXiv 2506.07492, eq. 13, 15 and 16 (docs/math.md, part 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from expo_kernels.objectives.pairs import REDUCTIONS, check_choice, check_number, difference, unit_slope
from expo_kernels.types import Needs, PairForm, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class ExpoComp:
    """A supervised term on the policy alone, and forward KL to the reference by samples of it.

        loss = softplus(-d) - lam E_{y ~ pi_ref}[logp(y)]          d = logp_w - logp_l
        d loss / d logp_w = -s(-d)    d loss / d logp_l = s(-d)    d loss / d logp_y = -lam * (weight of y)

    samples: where the expectation comes from. "anchors" are unlabelled responses of the reference, the clean sample:
    the mean over the batch's anchors. "pair" takes the pair itself, weight 1/2 each (unbiased only if the two are
    independent draws from the reference): both coefficients fall by lam / 2.
    The unsupervised term is always on sums; logp_reduction and temperature act on d. lam in (0, inf): towards 0 is
    the Bradley-Terry end. The reward is the policy's own reduced log-prob, the margin is d.
    """

    lam: float
    samples: str = "pair"
    logp_reduction: str = "sum"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_number("expo_comp", "lam", self.lam, 0.0, math.inf, open_low=True)
        check_number("expo_comp", "temperature", self.temperature, 0.0, math.inf, open_low=True)
        check_choice("expo_comp", "samples", self.samples, ("pair", "anchors"))
        check_choice("expo_comp", "logp_reduction", self.logp_reduction, REDUCTIONS)

    @property
    def needs(self) -> Needs:
        scale = -self.lam if self.samples == "anchors" else None
        return Needs(roles=2, lengths=self.logp_reduction == "mean", anchor_scale=scale)

    @property
    def _pull(self) -> float:
        """What raises each of the pair's own log-probs."""
        return 0.5 * self.lam if self.samples == "pair" else 0.0

    @property
    def pair_form(self) -> PairForm:
        return PairForm("expo_comp", self.lam, self._pull, self.logp_reduction == "mean", self.temperature)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        slope = unit_slope(logps.lengths, self.logp_reduction, self.temperature)  # [2, P]
        d = difference(logps.policy, slope)  # [P]
        wrong = torch.sigmoid(-d)
        loss, coefficients = -logsigmoid(d), torch.stack([-wrong, wrong]) * slope
        if self.samples == "pair":
            loss = loss - self._pull * logps.policy.sum(dim=0)
            coefficients = coefficients - self._pull
        return Terms(loss=loss, coefficients=coefficients, rewards=logps.policy * slope, margin=d)
