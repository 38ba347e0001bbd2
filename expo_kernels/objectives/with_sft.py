"""Imitation of the chosen response beside any objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expo_kernels.objectives.parts.imitation import add_sft, check_sft, sft_needs, sft_slope
from expo_kernels.types import Batch, Needs, Objective, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class WithSFT:
    """Any objective plus sft_weight times the nll of the first role: the chosen response of a pair, the first of a
    list, and of single responses those that the column `desirable` marks, where there is one.

        loss = objective - sft_weight (reduced logp of the first role)

    sft_reduction: a mean over the batch's tokens of that role ("tokens"; of single responses all tokens count in the
    divisor, the undesirable ones' too), over each response's own ("mean"), or none ("sum").
    """

    objective: Objective
    sft_weight: float
    sft_reduction: str = "tokens"

    def __post_init__(self) -> None:
        check_sft("with_sft", self.sft_weight, self.sft_reduction)
        if self.objective.needs.divisor != "groups":
            raise ValueError(f"with_sft: want an objective that averages over groups, got {self.objective!r}")

    @property
    def needs(self) -> Needs:
        inner, own = self.objective.needs, sft_needs(self.sft_reduction)
        return replace(
            inner, lengths=inner.lengths or own.lengths, mixes_divisors=inner.mixes_divisors or own.mixes_divisors
        )

    def token_weights(self, batch: Batch) -> Tensor:
        """[N], asked for only where the objective declares them; the imitated log-probs carry them too."""
        return self.objective.token_weights(batch)  # type: ignore[attr-defined]

    def check_columns(self, columns: Mapping[str, Tensor]) -> None:
        if check := getattr(self.objective, "check_columns", None):
            check(columns)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        terms = self.objective(logps)
        slope = self.sft_weight * sft_slope(logps, self.sft_reduction)
        if "desirable" in logps.columns:
            slope = torch.where(logps.columns["desirable"] != 0, slope, 0.0)
        loss, coefficients = add_sft(terms.loss, terms.coefficients, logps, slope)
        return terms._replace(loss=loss, coefficients=coefficients)
