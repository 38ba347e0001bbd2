"""KTO: arXiv 2402.01306, eq. 7 and 8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expo_kernels.objectives.parts.checks import check_choice, check_number
from expo_kernels.objectives.parts.pairs import log_ratios
from expo_kernels.types import Needs, SequenceLogprobs, Terms

REFERENCE_POINTS = ("mismatched", "batch", "column")


@dataclass(frozen=True, kw_only=True)
class KTO:
    """KTO. Single responses, each marked desirable or not, valued against a reference point z.

        loss = weight s(-x)      x = beta (rho - z) if desirable, beta (z - rho) if not      rho = logp - ref
        d loss / d logp = -weight beta s(x) s(-x), and + where not desirable

    Column desirable [P]: 1 or 0. z >= 0 estimates KL(pi || pi_ref) and takes no part in the gradient:
    "mismatched" (the paper's): the mean rho of the batch's forward-only sequences, prompts with other prompts'
    responses; "batch": the mean rho of the batch itself, which costs no further sequences and needs the whole batch
    scored first; "column": the column reference_point [P]. The first two are means over one call's sequences: where a
    step has several micro-batches or ranks, their parts add up to the whole batch's loss only with "column".
    The reward is beta rho.
    """

    paper: ClassVar[str] = "2402.01306, eq. 7-8"
    formula: ClassVar[str] = "weight s(-+beta (rho - z)), unpaired"

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference_point: str = "mismatched"

    def __post_init__(self) -> None:
        check_number("kto", "beta", self.beta, open_low=True)
        check_number("kto", "desirable_weight", self.desirable_weight)
        check_number("kto", "undesirable_weight", self.undesirable_weight)
        check_choice("kto", "reference_point", self.reference_point, REFERENCE_POINTS)

    @property
    def needs(self) -> Needs:
        return Needs(
            roles=1,
            reference=True,
            columns=("desirable", "reference_point") if self.reference_point == "column" else ("desirable",),
            forward_only=self.reference_point == "mismatched",
            whole_batch=self.reference_point == "batch",
        )

    def check_columns(self, columns: Mapping[str, Tensor]) -> None:
        desirable = columns["desirable"]
        bad = (desirable != 0) & (desirable != 1)
        if bool(bad.any()):
            raise ValueError(f"want desirable 1 or 0, got {desirable[bad][0].item()}")

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rho = log_ratios(logps)[0]  # [P]
        mark = logps.columns["desirable"]
        mark = torch.where((mark == 0) | (mark == 1), mark, torch.nan)  # a device's values are not checked before
        sign = 2.0 * mark - 1.0
        weight = self.undesirable_weight + (self.desirable_weight - self.undesirable_weight) * mark
        x = self.beta * sign * (rho - self._reference_point(logps, rho))
        wrong = torch.sigmoid(-x)
        coefficients = -weight * self.beta * sign * torch.sigmoid(x) * wrong
        return Terms(weight * wrong, coefficients[None], self.beta * rho[None])

    def _reference_point(self, logps: SequenceLogprobs, rho: Tensor) -> Tensor:
        if self.reference_point == "column":
            z = logps.columns["reference_point"]
        elif self.reference_point == "mismatched":
            others = logps.forward_only
            assert others is not None and others.reference is not None, "the engine passes what is declared"
            z = _mean(others.policy - others.reference, others.active)
        else:
            z = _mean(rho, logps.active)
        return z.detach().clamp(min=0.0)


def _mean(values: Tensor, active: Tensor) -> Tensor:
    """Of those that are active; 0 of none."""
    return torch.where(active, values, 0.0).sum() / active.sum().clamp(min=1)
