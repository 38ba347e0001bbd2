"""What is tried: shapes first, then, around the fastest of them, the order of the tiles and the epilogue's slices, or a
walk's pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TypeAlias

from expo_kernels.kernels.triton.tuning import INTERPRETER, MIN_COLUMNS
from expo_kernels.kernels.triton.tuning.types import Card, Tiles, Walk

Candidate: TypeAlias = "Tiles | Walk"
KERNELS = ("head", "capped", "persistent", "product", "product_persistent", "small", "walk")  # the fields of a Card
SLICED = ("head", "capped", "persistent", "product_persistent", "small")  # whose epilogue works on slices of the tile
PERSISTENT = {"persistent": "head", "product_persistent": "product"}  # by descriptors, and the field without
DESCRIPTORS = ("sm_90", "sm_100")
LARGE = ((128, 128), (128, 256), (64, 256), (256, 128), (64, 128))
FEW = ((64, 128), (32, 128), (128, 128), (32, 256))
MOST = 1 << 14  # entries of a walk's block


def shapes(card: Card, kernel: str) -> list[Candidate]:
    """What stands in the table, then others; nothing where the card has no such kernel."""
    if kernel in PERSISTENT and card.name not in DESCRIPTORS:
        return []
    shipped = getattr(card, kernel) or getattr(card, PERSISTENT[kernel])
    if card is INTERPRETER or card.name == INTERPRETER.name:
        others: Iterable[Candidate] = _interpreted(shipped)
    elif isinstance(shipped, Walk):
        others = (
            shipped._replace(rows=rows, columns=columns, warps=warps)
            for rows, columns, warps in itertools.product((1, 2, 4), (1024, 2048, 4096, 8192), (4, 8, 16))
            if rows * columns <= MOST
        )
    else:
        others = (shipped._replace(**shape) for shape in _tiles(card, kernel))
    return list(dict.fromkeys([shipped, *others]))


def orders(best: Candidate, kernel: str) -> list[Candidate]:
    """best, then the same tile in other orders and slices."""
    if isinstance(best, Walk):
        return list(dict.fromkeys([best, *(best._replace(pieces=pieces) for pieces in (4, 8, 16))]))
    slices = (1, 2, 4) if kernel in SLICED else (best.slices,)
    others = (best._replace(group=group, slices=count) for group, count in itertools.product((8, 16, 32, 64), slices))
    return list(dict.fromkeys([best, *others]))


def _tiles(card: Card, kernel: str) -> Iterable[dict[str, int]]:
    stages = (2,) if card.name.startswith("gfx") else (2, 3) if kernel == "small" else (3, 4)
    depths = (16, 32) if kernel == "small" else (64, 128) if kernel in PERSISTENT else (32, 64)
    for (rows, columns), depth, warps, count in itertools.product(
        FEW if kernel == "small" else LARGE, depths, (4, 8), stages
    ):
        assert columns >= MIN_COLUMNS, "the account of the workspace counts on it"
        yield {"rows": rows, "columns": columns, "depth": depth, "warps": warps, "stages": count}


def _interpreted(shipped: Candidate) -> list[Candidate]:
    """So few that a test can run them."""
    if isinstance(shipped, Walk):
        return [shipped._replace(rows=16), shipped._replace(columns=128)]
    return [shipped._replace(columns=128), shipped._replace(rows=16, depth=32)]


def named(candidate: Candidate) -> str:
    """128x256x64, 8 warps, 3 stages, group 16, 2 slices"""
    if isinstance(candidate, Walk):
        return f"{candidate.rows}x{candidate.columns}, {candidate.warps} warps, {candidate.pieces} pieces"
    rows, columns, depth, warps, stages, group, slices = candidate
    return f"{rows}x{columns}x{depth}, {warps} warps, {stages} stages, group {group}, {slices} slices"


def with_candidate(card: Card, kernel: str, candidate: Candidate) -> Card:
    return card._replace(**{kernel: candidate})  # type: ignore[arg-type]
