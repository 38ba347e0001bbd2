"""Preferences of a known reward: the policy they are consistent with, and pairs labelled by Bradley-Terry."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    prompt: Tensor  # [P]
    chosen: Tensor  # [P] indices of responses
    rejected: Tensor  # [P]


def bradley_terry_optimum(reward: Tensor) -> Tensor:
    """reward [X, Y] -> pi* [X, Y] with p*(y1 > y2) = s(reward_1 - reward_2) = pi*(y1) / (pi*(y1) + pi*(y2))."""
    return torch.softmax(reward, -1)


def draw_pairs(sampler: Tensor, reward: Tensor, count: int, random: torch.Generator) -> Pairs:
    """sampler [X, Y]: two different responses of it for a random prompt, the winner by Bradley-Terry."""
    X = sampler.shape[0]
    prompt = torch.randint(0, X, (count,), generator=random)
    drawn = torch.multinomial(sampler[prompt], 2, replacement=False, generator=random)  # [P, 2]
    gap = reward[prompt, drawn[:, 0]] - reward[prompt, drawn[:, 1]]
    wins = torch.rand(count, generator=random, dtype=gap.dtype) < torch.sigmoid(gap)
    chosen, rejected = torch.where(wins[:, None], drawn, drawn.flip(1)).T
    return Pairs(prompt, chosen, rejected)
