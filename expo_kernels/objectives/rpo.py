"""Reward-aware preference optimisation: arXiv 2406.11704 (Nemotron-4); arXiv 2502.00203."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import difference, log_ratios, on_margin
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class RPO:
    """Reward-aware PO. The preference that the implicit margin implies is fitted to the one that a reward gap implies.

        loss = KL(Bernoulli(s(g)) || Bernoulli(s(m)))      g = eta gap
        m = beta (rho_w - rho_l)      rho = logp - ref
        d loss / d logp_w = beta (s(m) - s(g)) = - d loss / d logp_l

    Column gap [P]: reward of the first response less that of the second. The reward is beta rho.
    """

    paper: ClassVar[str] = "2406.11704; 2502.00203"
    formula: ClassVar[str] = "KL(s(eta gap) || s(beta (rho_w - rho_l)))"

    beta: float = 0.1
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_number("rpo", "beta", self.beta, open_low=True)
        check_number("rpo", "eta", self.eta)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, columns=("gap",))

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * log_ratios(logps)
        margin = difference(rewards)
        target = self.eta * logps.columns["gap"]
        yes, no = torch.sigmoid(target), torch.sigmoid(-target)
        loss = yes * (logsigmoid(target) - logsigmoid(margin)) + no * (logsigmoid(-target) - logsigmoid(-margin))
        # s(m) - s(g) = no s(m) - yes s(-m): each part is small where it should be
        step = no * torch.sigmoid(margin) - yes * torch.sigmoid(-margin)
        return on_margin(loss, step, self.beta, rewards, margin)
