"""CPO: arXiv 2401.08417."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.imitation import add_sft, check_sft, sft_needs, sft_slope
from expo_kernels.objectives.parts.pairs import difference, on_margin
from expo_kernels.objectives.parts.shapes import noisy_logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class CPO:
    """CPO. DPO with a uniform reference, and imitation of the chosen response.

        loss = -log s(m) - sft_weight (mean logp_w)      m = beta (logp_w - logp_l)
        d loss / d logp_w = -beta s(-m) - sft_weight (its share of the mean)      d loss / d logp_l = beta s(-m)

    sft_reduction says over what the second term is a mean: the batch's chosen tokens ("tokens", what TRL calls
    cpo_alpha), each response's own ("mean"), or none ("sum", the paper's). label_smoothing as in dpo. The reward is
    beta logp.
    """

    paper: ClassVar[str] = "2401.08417"
    formula: ClassVar[str] = "-log s(beta d) - sft_weight logp_w"
    also_called: ClassVar[dict[str, str]] = {"cpo_alpha": "sft_weight"}

    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 1.0
    sft_reduction: str = "tokens"

    def __post_init__(self) -> None:
        check_number("cpo", "beta", self.beta, open_low=True)
        check_number("cpo", "label_smoothing", self.label_smoothing, 0.0, 0.5, open_high=True)
        check_sft("cpo", self.sft_weight, self.sft_reduction)

    @property
    def needs(self) -> Needs:
        return sft_needs(self.sft_reduction)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * logps.policy
        margin = difference(rewards)
        terms = on_margin(*noisy_logistic(margin, self.label_smoothing), self.beta, rewards, margin)
        share = self.sft_weight * sft_slope(logps, self.sft_reduction)
        loss, coefficients = add_sft(terms.loss, terms.coefficients, logps, share)
        return terms._replace(loss=loss, coefficients=coefficients)
