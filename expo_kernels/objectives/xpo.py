"""XPO, DPO with a bonus for exploration: arXiv 2405.21046, algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import difference, log_ratios, on_margin
from expo_kernels.objectives.parts.shapes import logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class XPO:
    """XPO. DPO that pushes down the log-prob of samples of the reference, which is optimism about all others.

        loss = -log s(m) + alpha E_{y ~ pi_ref}[logp(y)]      m = beta (rho_w - rho_l)      rho = logp - ref
        d loss / d logp_w = -beta s(-m) = - d loss / d logp_l      d loss / d logp_y = alpha (weight of y)

    The expectation is the mean over the batch's anchors, responses of the reference. The reward is beta rho.
    """

    paper: ClassVar[str] = "2405.21046, alg. 1"
    formula: ClassVar[str] = "-log s(beta (rho_w - rho_l)) + alpha E_ref[logp]"

    beta: float = 0.1
    alpha: float = 1e-5

    def __post_init__(self) -> None:
        check_number("xpo", "beta", self.beta, open_low=True)
        check_number("xpo", "alpha", self.alpha, open_low=True)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, anchor_scale=self.alpha)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * log_ratios(logps)
        margin = difference(rewards)
        return on_margin(*logistic(margin), self.beta, rewards, margin)
