"""The slope of a noisy series, with an interval that holds where neighbours depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

BLOCKS = 16


class Slope(NamedTuple):
    """A unit of y for a unit of x; low and high: its 95 % interval; mean: of y."""

    value: float
    low: float
    high: float
    mean: float


def block_slope(points: Sequence[tuple[float, float]], blocks: int = BLOCKS) -> Slope:
    """Least squares on the means of equal stretches of x, whose errors are as good as independent."""
    x, y = (np.asarray(values, dtype=float) for values in zip(*points, strict=True))
    edges = np.linspace(x.min(), x.max(), blocks + 1)
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, blocks - 1)
    there = [place == i for i in range(blocks) if (place == i).any()]
    if len(there) < 4:
        raise ValueError(f"block_slope: want points in at least 4 of {blocks} stretches, got {len(there)}")
    fit = stats.linregress([x[m].mean() for m in there], [y[m].mean() for m in there])
    reach = float(stats.t.ppf(0.975, len(there) - 2)) * fit.stderr
    return Slope(float(fit.slope), float(fit.slope - reach), float(fit.slope + reach), float(y.mean()))
