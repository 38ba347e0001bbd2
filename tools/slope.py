"""The slope of what a noisy series never goes below, with an interval: how memory grows that comes and goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Slope(NamedTuple):
    """A unit of y for a unit of x; low and high: its 95 % interval; mean: of the floors."""

    value: float
    low: float
    high: float
    mean: float


def floor_slope(points: Sequence[tuple[float, float]], width: float) -> Slope:
    """Least squares on the least y of each stretch of x of that width, which is one of the series' own cycles."""
    x, y = (np.asarray(values, dtype=float) for values in zip(*points, strict=True))
    place = np.floor((x - x.min()) / width).astype(int)
    whole = [i for i in range(place.max() + 1) if (place == i).any()]
    if len(whole) < 4:
        raise ValueError(f"floor_slope: want points in at least 4 stretches of {width:g}, got {len(whole)}")
    floors = np.array([y[place == i].min() for i in whole])
    fit = stats.linregress(np.array(whole) * width, floors)
    reach = float(stats.t.ppf(0.975, len(whole) - 2)) * fit.stderr
    return Slope(float(fit.slope), float(fit.slope - reach), float(fit.slope + reach), float(floors.mean()))
