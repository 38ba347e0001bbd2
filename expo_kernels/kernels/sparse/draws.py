"""Random numbers without a state: a function of the seed, the block and the column, the same on every backend."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 1 << 24  # a draw is a multiple of 1 / STEPS, exact in fp32
_WORD = (1 << 32) - 1


def draws(seed: int, block: int, columns: int, device: torch.device) -> Tensor:
    """-> [columns] fp32 from 0 to below 1."""
    first, second = keys(seed, block)
    v = torch.arange(columns, device=device)
    return (_mixed(_mixed(v ^ first) ^ second) >> 8).float() / STEPS


def keys(seed: int, block: int) -> tuple[int, int]:
    """Two words that depend on every bit of both numbers."""
    first = second = 0x9E3779B9
    for word in (seed & _WORD, seed >> 32, block & _WORD, block >> 32):
        first = _mixed(first ^ word)
        second = _mixed((second + first + word) & _WORD)
    return first, second


def _mixed(x):
    """The finalizer of MurmurHash3 on words of 32 bits: int, or int64 tensor, whose products wrap around at 2^64."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)
