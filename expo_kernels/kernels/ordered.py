"""Additions whose order, hence whose bits, are the same on every run."""

from __future__ import annotations

from torch import Tensor


def ordered_add(target: Tensor, index: Tensor, values: Tensor) -> None:
    """target[index] += values, repeats in order, hence the same bits on every run."""
    if target.device.type == "cpu":
        target.index_add_(0, index, values)  # one after the other on a CPU
    else:
        target.index_put_((index,), values, accumulate=True)  # sorted; index_add_ has atomics there
