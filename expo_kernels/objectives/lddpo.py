"""LD-DPO, length-desensitised DPO: arXiv 2409.06411."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expo_kernels.objectives.parts.checks import check_number
from expo_kernels.objectives.parts.pairs import difference, log_ratios, on_margin
from expo_kernels.objectives.parts.shapes import logistic
from expo_kernels.types import Batch, Needs, SequenceLogprobs, Terms


@dataclass(frozen=True, kw_only=True)
class LDDPO:
    """LD-DPO. DPO in which tokens past the pair's shorter length count alpha.

        loss = -log s(m)      m = beta (rho_w - rho_l)      rho = sum_t a_t (logp_t - ref_t)
        a_t = 1 up to the shorter response's length, alpha beyond;      d loss / d logp_w,t = -beta s(-m) a_t

    alpha 1 is DPO, 0 drops what is longer. The reference's sums must carry the same token weights: make them of the
    batch that layout.with_declared_weights(objective, batch) returns. The reward is beta rho.
    """

    paper: ClassVar[str] = "2409.06411"
    formula: ClassVar[str] = "-log s(beta (rho_w - rho_l)), tokens past min(|w|, |l|) times alpha"

    beta: float = 0.1
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_number("lddpo", "beta", self.beta, open_low=True)
        check_number("lddpo", "alpha", self.alpha, 0.0, 1.0)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, token_weights=True)

    def token_weights(self, batch: Batch) -> Tensor:
        """[N]"""
        K, P = batch.host.roles, batch.host.groups
        shorter = batch.lengths[: K * P].view(K, P).amin(0).repeat(K)  # of its group, for each sequence
        shorter = torch.cat([shorter, batch.lengths[K * P :]])  # what stands outside groups keeps all its tokens
        position = torch.arange(batch.labels.shape[0], device=batch.labels.device) - batch.offsets[batch.segments]
        beyond = position >= shorter[batch.segments]
        return torch.ones_like(beyond, dtype=torch.float32).masked_fill_(beyond, self.alpha)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        rewards = self.beta * log_ratios(logps)
        margin = difference(rewards)
        return on_margin(*logistic(margin), self.beta, rewards, margin)
