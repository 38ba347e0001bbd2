"""The checks of an objective's parameters: what was wanted, and what was given."""

from __future__ import annotations

import math
import numbers


def check_number(
    where: str, name: str, value: object, low: float = 0.0, high: float = math.inf, *, open_low: bool = False,
    open_high: bool = False,
) -> None:  # fmt: skip
    """A finite number between low and high; the ends belong to the interval unless said otherwise."""
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    above = low < number if open_low else low <= number
    below = number < high if open_high else number <= high
    if not (above and below and math.isfinite(number)):
        left = "(" if open_low or low == -math.inf else "["
        right = ")" if open_high or high == math.inf else "]"
        raise ValueError(f"{where}: want {name} a number in {left}{low:g}, {high:g}{right}, got {value!r}")


def check_choice(where: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{where}: want {name} one of {', '.join(choices)}, got {value!r}")


def check_bool(where: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{where}: want {name} True or False, got {value!r}")
