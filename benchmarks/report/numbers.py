"""Figures as they are printed."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"


def figure(value: float | None) -> str:
    """Three digits, or all of those before the point."""
    if value is None:
        return NOTHING
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"


def times(value: float | None) -> str:
    """A ratio; as many digits as one that is worth telling from another."""
    return NOTHING if value is None else f"{value:.2f}" if abs(value) >= 0.0995 else f"{value:.3f}"


def errors(values: Sequence[float] | None) -> str:
    return NOTHING if values is None else ", ".join(f"{value:.1e}" for value in values)


def between(low: float | None, high: float | None) -> str:
    return NOTHING if low is None or high is None else f"{figure(low)} to {figure(high)}"


def count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"
