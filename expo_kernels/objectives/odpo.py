"""ODPO, DPO with an offset: arXiv 2402.10571."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expo_kernels.objectives.parts.checks import check_choice, check_number
from expo_kernels.objectives.parts.pairs import difference, log_ratios, on_margin
from expo_kernels.objectives.parts.shapes import logistic
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class ODPO:
    """ODPO. DPO whose margin must exceed an offset that grows with how much better the chosen response is.

        loss = -log s(m - alpha f(gap))      m = beta (rho_w - rho_l)      rho = logp - ref
        d loss / d logp_w = -beta s(alpha f(gap) - m) = - d loss / d logp_l

    Column gap [P]: score of the chosen less that of the rejected. scaling "log" (the paper's; every gap must be
    positive) or "linear" is f. The reward is beta rho, the margin is m.
    """

    paper: ClassVar[str] = "2402.10571"
    formula: ClassVar[str] = "-log s(beta (rho_w - rho_l) - alpha f(gap))"

    beta: float = 0.1
    alpha: float = 1.0
    scaling: str = "log"

    def __post_init__(self) -> None:
        check_number("odpo", "beta", self.beta, open_low=True)
        check_number("odpo", "alpha", self.alpha)
        check_choice("odpo", "scaling", self.scaling, ("log", "linear"))

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, columns=("gap",))

    def check_columns(self, columns: Mapping[str, Tensor]) -> None:
        if self.scaling == "log" and bool((columns["gap"] <= 0).any()):
            raise ValueError(f'want every gap positive for scaling "log", got {columns["gap"].min().item()}')

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * log_ratios(logps)
        margin = difference(rewards)
        gap = logps.columns["gap"]
        if self.scaling == "log":
            gap = torch.where(gap > 0, gap, torch.nan).log()  # a device's values are not checked before
        offset = self.alpha * gap
        return on_margin(*logistic(margin - offset), self.beta, rewards, margin)
