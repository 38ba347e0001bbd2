"""The table of tiles as a file: the same rows make the same text, and only the card that was measured changes its."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from expo_kernels.kernels.triton.tuning import cards
from expo_kernels.kernels.triton.tuning.types import Card, Tiles, Walk

FILE = Path(cards.__file__)
HEADER = '''\
"""A row an architecture; written by `python -m tools.tuning --write` (tools/tuning/table.py).

`measured` names what was timed and where. What it does not name are shapes that compile without spills and fit the
card's shared memory (docs/kernels.md), never timed; so is the route (`fused`): False is the library's product.
"""

from __future__ import annotations

from expo_kernels.kernels.triton.tuning.types import Card, Tiles, Walk

ROWS = (
'''


def text(rows: Iterable[Card]) -> str:
    return HEADER + "".join(_row(row) for row in rows) + ")\n"


def write(row: Card, file: Path = FILE) -> None:
    """Puts the row in the place of the one of its name; the others stay to the letter."""
    names = [known.name for known in cards.ROWS]
    if row.name not in names:
        raise ValueError(f"table: want a row of {', '.join(names)}, got {row.name!r}")
    rows = [row if known.name == row.name else known for known in cards.ROWS]
    beside = file.with_suffix(".new")
    beside.write_text(text(rows))
    os.replace(beside, file)


def _row(card: Card) -> str:
    lines = [f"{name}={_value(name, value)}" for name, value in card._asdict().items()]
    return "    Card(\n" + "".join(f"        {line},\n" for line in lines) + "    ),\n"


def _value(name: str, value: object) -> str:
    if isinstance(value, Tiles | Walk):
        inner = ", ".join(f"{field}={number}" for field, number in value._asdict().items())
        return f"{type(value).__name__}({inner})"
    if isinstance(value, tuple):
        return "(" + "".join(f"\n            {_quoted(item)}," for item in value) + "\n        )" if value else "()"
    if isinstance(value, str):
        return _quoted(value)
    return f"{value:_}" if name == "shared_bytes" else repr(value)


def _quoted(words: str) -> str:
    if '"' in words or "\\" in words or "\n" in words:
        raise ValueError(f"table: want words without quotes, backslashes and line ends, got {words!r}")
    return f'"{words}"'
