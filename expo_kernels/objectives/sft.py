"""Supervised fine-tuning, the baseline that needs no preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from expo_kernels.objectives.parts.checks import check_choice
from expo_kernels.objectives.parts.imitation import SFT_REDUCTIONS
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class SFT:
    """SFT. The nll of single responses.

        loss = -logp      d loss / d logp = -1      (both over the response's length for "mean")

    reduction: a mean over the batch's tokens ("tokens", what a causal LM is trained on), over responses of their own
    means ("mean"), or over responses of their sums ("sum"). The reward is the reduced log-prob.
    """

    paper: ClassVar[str] = ""
    formula: ClassVar[str] = "-logp"

    reduction: str = "tokens"

    def __post_init__(self) -> None:
        check_choice("sft", "reduction", self.reduction, SFT_REDUCTIONS)

    @property
    def needs(self) -> Needs:
        tokens = self.reduction == "tokens"
        return Needs(roles=1, divisor="tokens" if tokens else "groups", lengths=self.reduction == "mean")

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        slope = 1.0 / logps.lengths if self.reduction == "mean" else torch.ones_like(logps.lengths)
        reduced = slope * logps.policy  # [1, P]
        return Terms(-reduced[0], -slope, reduced)
