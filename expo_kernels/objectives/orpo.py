"""ORPO: arXiv 2403.07691, eq. 4 to 7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.imitation import add_sft, check_sft, sft_needs, sft_slope
from expo_kernels.objectives.parts.pairs import difference, on_margin
from expo_kernels.objectives.parts.shapes import Shape, logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms

SMALLEST_NLL = 1e-4  # of a token, on average


@dataclass(frozen=True, kw_only=True)
class ORPO:
    """ORPO. Imitation of the chosen response, and the logistic loss of the log odds ratio.

        loss = -sft_weight (mean logp_w) - lam log s(m)      m = o(q_w) - o(q_l)
        o(q) = q - log(1 - e^q), the log odds of the mean log-prob q = logp / length;      do / dq = 1 / (1 - e^q)
        d loss / d logp_w = -sft_weight (its share of the mean) - lam s(-m) o'(q_w) / |w|
        d loss / d logp_l = lam s(-m) o'(q_l) / |l|

    The odds are infinite at q = 0, so o goes on as its tangent where the mean nll falls under 1e-4 nats: its slope
    saturates at 10^4. sft_reduction says over what the first term is a mean. The reward is lam times the mean log-prob
    (TRL's), the margin is m.
    """

    paper: ClassVar[str] = "2403.07691, eq. 4-7"
    formula: ClassVar[str] = "-sft_weight logp_w - lam log s(logodds_w - logodds_l)"
    also_called: ClassVar[dict[str, str]] = {"beta": "lam"}

    lam: float = 0.1
    sft_weight: float = 1.0
    sft_reduction: str = "tokens"

    def __post_init__(self) -> None:
        check_number("orpo", "lam", self.lam)
        check_sft("orpo", self.sft_weight, self.sft_reduction)

    @property
    def needs(self) -> Needs:
        return Needs(lengths=True, mixes_divisors=sft_needs(self.sft_reduction).mixes_divisors)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        mean = logps.policy / logps.lengths
        odds = _log_odds(mean)
        margin = difference(odds.value)
        right = logistic(margin)
        terms = on_margin(
            self.lam * right.value, self.lam * right.slope, odds.slope / logps.lengths, self.lam * mean, margin
        )
        share = self.sft_weight * sft_slope(logps, self.sft_reduction)
        loss, coefficients = add_sft(terms.loss, terms.coefficients, logps, share)
        return terms._replace(loss=loss, coefficients=coefficients)


def _log_odds(q: Tensor) -> Shape:
    """log(e^q / (1 - e^q)) and its slope; the tangent from -SMALLEST_NLL up."""
    inner = q.clamp(max=-SMALLEST_NLL)
    rest = -torch.expm1(inner)  # 1 - e^q, without cancellation
    slope = 1.0 / rest
    return Shape(inner - rest.log() + (q - inner) * slope.detach(), slope)
