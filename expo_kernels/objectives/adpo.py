"""ADPO, anchored preference optimisation, pairwise and listwise: arXiv 2510.18913."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from expo_kernels.objectives.parts.checks import check_choice, check_number
from expo_kernels.objectives.parts.pairs import log_ratios
from expo_kernels.types import Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class ADPO:
    """ADPO. K responses; the anchored policy's preferences are fitted to those of their rewards, by cross entropy.

        listwise   loss = -sum_k q_k log softmax_k(beta rho)                 q = softmax(reward / temperature)
                   d loss / d logp_k = beta (softmax_k(beta rho) - q_k)
        pairwise   loss = -mean over pairs i < j of q_ij log s(m_ij) + q_ji log s(-m_ij)     m_ij = beta (rho_i - rho_j)
                   q_ij = s((reward_i - reward_j) / temperature);      d loss / d m_ij = s(m_ij) - q_ij

    rho = logp - ref. Column reward: K P numbers, role by role as the responses are. labels "hard" puts q on the best
    (the first of equals) or on each pair's winner (half each of equals). With two responses both forms are one loss,
    and with hard labels it is DPO. The reward of the output is beta rho.
    """

    paper: ClassVar[str] = "2510.18913"
    formula: ClassVar[str] = "cross entropy of softmax(reward / temperature) and softmax(beta rho)"

    beta: float = 0.1
    temperature: float = 1.0
    form: str = "listwise"
    labels: str = "soft"

    def __post_init__(self) -> None:
        check_number("adpo", "beta", self.beta, open_low=True)
        check_number("adpo", "temperature", self.temperature, open_low=True)
        check_choice("adpo", "form", self.form, ("listwise", "pairwise"))
        check_choice("adpo", "labels", self.labels, ("soft", "hard"))

    @property
    def needs(self) -> Needs:
        return Needs(roles=None, reference=True, sequence_columns=("reward",))

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * log_ratios(logps)  # [K, P]
        given = logps.columns["reward"]
        loss, slope = (self._listwise if self.form == "listwise" else self._pairwise)(rewards, given)
        return Terms(loss, self.beta * slope, rewards)

    def _listwise(self, rewards: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """-> loss [P], d loss / d rewards [K, P]"""
        if self.labels == "hard":
            q = torch.zeros_like(rewards).scatter_(0, given.argmax(0, keepdim=True), 1.0)
        else:
            q = torch.softmax(given / self.temperature, 0)
        logp = torch.log_softmax(rewards, 0)
        return -(q * logp).sum(0), logp.exp() - q

    def _pairwise(self, rewards: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """As a mean over ordered pairs, each of which sees half of its pair's loss: d loss / d m_ij and m_ji are equal
        and opposite, so twice the row sums."""
        K = rewards.shape[0]
        margins, gaps = rewards[:, None] - rewards[None], given[:, None] - given[None]  # [K, K, P]
        if self.labels == "hard":
            yes, no = 0.5 + 0.5 * gaps.sign(), 0.5 - 0.5 * gaps.sign()
        else:
            yes, no = torch.sigmoid(gaps / self.temperature), torch.sigmoid(-gaps / self.temperature)
        off = ~torch.eye(K, dtype=torch.bool, device=rewards.device)[..., None]
        pairs = max(K * (K - 1), 1)
        loss = torch.where(off, -yes * logsigmoid(margins), 0.0).sum((0, 1)) * 2.0 / pairs
        slope = torch.where(off, no * torch.sigmoid(margins) - yes * torch.sigmoid(-margins), 0.0)
        return loss, slope.sum(1) * 2.0 / pairs
