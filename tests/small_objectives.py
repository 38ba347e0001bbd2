"""Objectives of a user's own, to show that the protocol carries what the library does not ship."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from expo_kernels import Needs, SequenceLogprobs, Terms


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
class Listwise:
    """Softmax over k responses against softmax of their rewards (any number of roles, a column per sequence)."""

    needs: ClassVar[Needs] = Needs(roles=None, sequence_columns=("reward",))

    def __call__(self, logps: SequenceLogprobs) -> Terms:
        target = torch.softmax(logps.columns["reward"].to(logps.policy.dtype), 0)  # [K, P]
        logq = torch.log_softmax(logps.policy, 0)
        return Terms(-(target * logq).sum(0), logq.exp() - target, logps.policy, None)
