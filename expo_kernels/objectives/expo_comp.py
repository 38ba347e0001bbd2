"""EXPO, the compositional loss: arXiv 2506.07492, eq. 13, 15 and 16 (docs/math.md, part 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from expo_kernels.objectives.parts.checks import check_choice, check_number
from expo_kernels.objectives.parts.pairs import REDUCTIONS, difference, on_margin, unit_slope
from expo_kernels.objectives.parts.shapes import logistic
from expo_kernels.types import Needs, PairForm, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class ExpoComp:
    """EXPO, compositional. A supervised term on the policy alone, and forward KL to the reference by samples of it.

        loss = softplus(-d) - lam E_{y ~ pi_ref}[logp(y)]          d = logp_w - logp_l
        d loss / d logp_w = -s(-d)    d loss / d logp_l = s(-d)    d loss / d logp_y = -lam * (weight of y)

    samples: where the expectation comes from. "anchors" are unlabelled responses of the reference, the clean sample:
    the mean over the batch's anchors. "pair" takes the pair itself, weight 1/2 each (unbiased only if the two are
    independent draws from the reference): both coefficients fall by lam / 2. The unsupervised term is always on sums;
    logp_reduction, temperature (which divides d) and offset (which is then taken off, a margin that the chosen response
    must win by) act on d; the last two are not the paper's. lam in (0, inf): towards 0 is the Bradley-Terry end. The
    reward is the policy's own reduced log-prob, the margin is d.
    """

    paper: ClassVar[str] = "2506.07492, eq. 13-16"
    formula: ClassVar[str] = "log(1 + e^-d) - lam E_ref[logp]"

    lam: float
    samples: str = "pair"
    logp_reduction: str = "sum"
    temperature: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        check_number("expo_comp", "lam", self.lam, open_low=True)
        check_number("expo_comp", "temperature", self.temperature, open_low=True)
        check_number("expo_comp", "offset", self.offset, -math.inf)
        check_choice("expo_comp", "samples", self.samples, ("pair", "anchors"))
        check_choice("expo_comp", "logp_reduction", self.logp_reduction, REDUCTIONS)

    @property
    def needs(self) -> Needs:
        scale = -self.lam if self.samples == "anchors" else None
        return Needs(lengths=self.logp_reduction == "mean", anchor_scale=scale)

    @property
    def _pull(self) -> float:
        """What raises each of the pair's own log-probs."""
        return 0.5 * self.lam if self.samples == "pair" else 0.0

    @property
    def pair_form(self) -> PairForm | None:
        """No kernel has the offset."""
        form = PairForm("expo_comp", self.lam, self._pull, self.logp_reduction == "mean", self.temperature)
        return None if self.offset else form

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        slope = unit_slope(logps.lengths, self.logp_reduction, 1.0 / self.temperature)  # [2, P]
        rewards = logps.policy * slope
        d = difference(rewards) - self.offset  # [P]
        terms = on_margin(*logistic(d), slope, rewards, d)
        if self.samples == "anchors":
            return terms
        return terms._replace(
            loss=terms.loss - self._pull * logps.policy.sum(dim=0), coefficients=terms.coefficients - self._pull
        )
