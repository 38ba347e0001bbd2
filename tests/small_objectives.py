"""Small objectives, each in need of something else, to show that the protocol carries every method to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from expo_kernels import Batch, Needs, SequenceLogprobs, Terms


@dataclass(frozen=True)
class RewardGap:
    """Regression of the implicit margin on a per-pair column (needs a reference and a column)."""

    needs: ClassVar[Needs] = Needs(reference=True, columns=("gap",))

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        ratio = logps.policy - logps.reference
        margin = ratio[0] - ratio[1]
        off = margin - logps.columns["gap"].to(margin.dtype)
        step = 2 * off
        return Terms(off.square(), torch.stack([step, -step]), ratio, margin)


@dataclass(frozen=True)
class SeveralReferences:
    """DPO against the largest of several references' log-probs."""

    beta: float = 0.1
    needs: ClassVar[Needs] = Needs(reference=True, several_references=True)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        reference = logps.reference.amax(0) if logps.reference.ndim == 3 else logps.reference
        ratio = self.beta * (logps.policy - reference)
        margin = ratio[0] - ratio[1]
        step = -self.beta * torch.sigmoid(-margin)
        return Terms(-logsigmoid(margin), torch.stack([step, -step]), ratio, margin)


@dataclass(frozen=True)
class Hinge:
    """SLiC's hinge: the coefficient is exactly 0 beyond the margin, so rows are skipped; NaN must not be."""

    delta: float = 1.0
    needs: ClassVar[Needs] = Needs()

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        margin = logps.policy[0] - logps.policy[1]
        step = torch.where(margin < self.delta, -1.0, 0.0).to(margin.dtype)
        return Terms((self.delta - margin).clamp(min=0), torch.stack([step, -step]), logps.policy, margin)


@dataclass(frozen=True)
class Downweighted:
    """LD-DPO's idea: tokens past the shorter response's length weigh `alpha` (needs token weights)."""

    alpha: float = 0.5
    needs: ClassVar[Needs] = Needs(token_weights=True)

    def token_weights(self, batch: Batch) -> torch.Tensor:
        K, P = batch.host.roles, batch.host.groups
        shortest = batch.lengths[: K * P].view(K, P).amin(0).repeat(K)
        shortest = torch.cat([shortest, batch.lengths[K * P :]])  # anchors and the like keep all their tokens
        position = torch.arange(batch.labels.shape[0], device=batch.labels.device) - batch.offsets[batch.segments]
        return torch.where(position < shortest[batch.segments], 1.0, self.alpha)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        margin = 0.1 * (logps.policy[0] - logps.policy[1])
        step = -0.1 * torch.sigmoid(-margin)
        return Terms(-logsigmoid(margin), torch.stack([step, -step]), logps.policy, margin)


@dataclass(frozen=True)
class Coupled:
    """KTO's shape: unpaired, and every group's loss depends on a mean over the batch (needs the whole batch)."""

    needs: ClassVar[Needs] = Needs(roles=1, whole_batch=True, sequence_columns=("sign",), lengths=True)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        reward = logps.policy[0] / logps.lengths[0]  # [P]
        active = logps.active.to(reward.dtype)
        count = active.sum().clamp(min=1)
        baseline = (reward * active).sum() / count
        sign = torch.sign(logps.columns["sign"][0]).to(reward.dtype)
        score = sign * (reward - baseline)
        step = -sign * torch.sigmoid(-score)  # d loss_p / d (reward_p - baseline)
        c = active * (step - (step * active).sum() / count) / logps.lengths[0]
        return Terms(-logsigmoid(score), c[None], reward[None], None)


@dataclass(frozen=True)
class TokenMean:
    """SFT as a mean over the batch's tokens (a divisor of its own)."""

    needs: ClassVar[Needs] = Needs(roles=1, divisor="tokens")

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        return Terms(-logps.policy[0], -torch.ones_like(logps.policy), logps.policy, None)


@dataclass(frozen=True)
class Listwise:
    """Softmax over k responses against softmax of their rewards (any number of roles, a column per sequence)."""

    needs: ClassVar[Needs] = Needs(roles=None, sequence_columns=("reward",))

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        target = torch.softmax(logps.columns["reward"].to(logps.policy.dtype), 0)  # [K, P]
        logq = torch.log_softmax(logps.policy, 0)
        return Terms(-(target * logq).sum(0), logq.exp() - target, logps.policy, None)


@dataclass(frozen=True)
class MixedMeans:
    """A pair term averaged over groups plus an SFT term averaged over chosen tokens: two divisors in one loss."""

    needs: ClassVar[Needs] = Needs(mixes_divisors=True)

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        margin = 0.1 * (logps.policy[0] - logps.policy[1])
        step = -0.1 * torch.sigmoid(-margin)
        ratio = logps.divisors.groups / logps.divisors.tokens
        return Terms(
            -logsigmoid(margin) - ratio * logps.policy[0], torch.stack([step - ratio, -step]), logps.policy, margin
        )
