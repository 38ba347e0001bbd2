"""Intervals of a share: Wilson's, and percentiles of a bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

_BLOCK = 2**22  # numbers drawn at a time


class Interval(NamedTuple):
    low: float
    high: float


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion, without continuity correction."""
    if n < 1 or not 0 <= successes <= n or not 0 < level < 1:
        raise ValueError(
            f"wilson: want 0 <= successes <= n, n >= 1, level in (0, 1), got {successes!r}, {n!r}, {level!r}"
        )
    z, share = float(ndtri(0.5 + level / 2)), successes / n
    shrink = 1 / (1 + z * z / n)
    middle = shrink * (share + z * z / (2 * n))
    half = shrink * z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half)


def bootstrap(
    values: Sequence[float] | NDArray[np.float64], *, seed: int, draws: int = 10_000, level: float = 0.95
) -> Interval:
    """Percentile interval of the mean of values [n], n >= 2, over `draws` resamples of them.

    A resample is drawn as how often each distinct value comes, which has the same law as drawing n values, costs
    nothing for outcomes and does not depend on the order of the values.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or given.size < 2 or not np.isfinite(given).all():
        raise ValueError(f"bootstrap: want at least 2 finite values [n], got shape {given.shape}")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap: want draws >= 1 and level in (0, 1), got {draws!r}, {level!r}")
    distinct, counts = np.unique(given, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // distinct.size)
    means = [
        generator.multinomial(given.size, counts / given.size, size=min(block, draws - start)) @ distinct / given.size
        for start in range(0, draws, block)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
