"""InfiFPO, preference optimisation against several fused references: after arXiv 2505.13878."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expo_kernels.objectives.parts.checks import check_bool, check_choice, check_number
from expo_kernels.objectives.parts.pairs import REDUCTIONS, difference, on_margin, unit_slope
from expo_kernels.objectives.parts.shapes import logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class InfiFPO:
    """InfiFPO. DPO whose reference is fused from several models' cached log-probs, reference [R, S].

        loss = -log s(m)      m = beta (rho_w - rho_l)      rho = (logp - fused) / length
        d loss / d logp_w = -beta s(-m) / |w| and the other sign for l

    reference[0] is the pivot, the policy before training; the others are the sources. clip: a source may raise the
    chosen response's reference above the pivot's and lower the rejected one's, never the opposite, so that a weak
    source cannot undo what the pivot knows. fusion "max_margin" takes for each response the source furthest from the
    pivot, "mean" their average. logp_reduction "sum" leaves lengths out. With one reference
    it is DPO. The reward is beta rho.
    """

    paper: ClassVar[str] = "2505.13878"
    formula: ClassVar[str] = "-log s(beta (rho_w - rho_l)), rho to fused references"

    beta: float = 2.5
    fusion: str = "max_margin"
    clip: bool = True
    logp_reduction: str = "mean"

    def __post_init__(self) -> None:
        check_number("infifpo", "beta", self.beta, open_low=True)
        check_choice("infifpo", "fusion", self.fusion, ("max_margin", "mean"))
        check_bool("infifpo", "clip", self.clip)
        check_choice("infifpo", "logp_reduction", self.logp_reduction, REDUCTIONS)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, several_references=True, lengths=self.logp_reduction == "mean")

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        assert logps.reference is not None, "the engine passes what is declared"
        slope = unit_slope(logps.lengths, self.logp_reduction, self.beta)
        reference = logps.reference if logps.reference.ndim == 2 else self._fused(logps.reference)
        rewards = (logps.policy - reference) * slope
        margin = difference(rewards)
        return on_margin(*logistic(margin), slope, rewards, margin)

    def _fused(self, reference: Tensor) -> Tensor:
        """[R, 2, P] -> [2, P]"""
        pivot, sources = reference[0], reference[1:]
        if sources.shape[0] == 0:
            return pivot
        away = sources - pivot  # [R - 1, 2, P]
        if self.clip:
            away = away.clone()
            away[:, 0].clamp_(min=0.0)
            away[:, 1].clamp_(max=0.0)
        if self.fusion == "mean":
            return pivot + away.mean(0)
        return pivot + away.gather(0, away.abs().argmax(0, keepdim=True))[0]
