"""SLiC-HF: arXiv 2305.10425, with the chosen response as the target of its regulariser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.imitation import add_sft, check_sft, sft_needs, sft_slope
from expo_kernels.objectives.parts.pairs import difference
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class SLiC:
    """SLiC-HF. A hinge on the policy's own log-probs, and imitation of the chosen response.

        loss = max(0, delta - d) - sft_weight logp_w      d = logp_w - logp_l
        d loss / d logp_w = -[d < delta] - sft_weight      d loss / d logp_l = [d < delta]

    sft_reduction says over what the second term is a mean ("sum": the sequence's log-prob, the paper's). The hinge on
    implicit rewards is gpo with shape="hinge". The reward is the policy's log-prob, the margin is d.
    """

    paper: ClassVar[str] = "2305.10425"
    formula: ClassVar[str] = "max(0, delta - d) - sft_weight logp_w"
    also_called: ClassVar[dict[str, str]] = {"lam": "sft_weight"}

    delta: float = 1.0
    sft_weight: float = 0.0
    sft_reduction: str = "sum"

    def __post_init__(self) -> None:
        check_number("slic", "delta", self.delta, -math.inf)
        check_sft("slic", self.sft_weight, self.sft_reduction)

    @property
    def needs(self) -> Needs:
        return sft_needs(self.sft_reduction)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        d = difference(logps.policy)
        step = torch.where(d < self.delta, -1.0, 0.0).to(d.dtype)
        loss, coefficients = add_sft(
            (self.delta - d).clamp(min=0.0), torch.stack([step, -step]), logps,
            self.sft_weight * sft_slope(logps, self.sft_reduction),
        )  # fmt: skip
        return Terms(loss, coefficients, logps.policy, d)
