"""One table of tile shapes an architecture. Nothing is tuned at run time, so all ranks run the same kernels.

No row has been measured on a device yet: the shapes are those that compile without spills and fit the card's shared
memory (docs/kernels.md), the route is the library's product, which is exact and near the library's speed everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

VECTOR = 16  # what Triton knows a stride to be a multiple of, or not
MIN_COLUMNS = 128  # no tile of the head is narrower; the account of the workspace counts on it


class Tiles(NamedTuple):
    """A product's tile: rows x columns of the output, `depth` of the inner dimension at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 16  # row blocks that share a pass over the columns
    slices: int = 2  # of the tile in the epilogue of the head


class Walk(NamedTuple):
    """A block of rows, walked this many columns at a time."""

    rows: int
    columns: int
    warps: int


class Card(NamedTuple):
    name: str
    fused: bool  # bf16 heads go through the product with the exponential epilogue, not through the library's product
    head: Tiles
    capped: Tiles  # of the head under a soft cap, whose epilogue wants more registers
    persistent: Tiles | None  # of the head by tensor descriptors, where the card has them; not under a soft cap
    product: Tiles
    small: Tiles  # of both, for fp32 (on the card's ordinary units) and for rows that do not begin at whole vectors
    walk: Walk  # of the row kernel
    shared_bytes: int  # what one program may use

    def head_tiles(self, softcap: float | None, *operands: Tensor) -> Tiles:
        if not _begin_at_vectors(operands):
            return self.small
        return self.head if softcap is None else self.capped

    def product_tiles(self, *operands: Tensor) -> Tiles:
        return self.product if _begin_at_vectors(operands) else self.small


def _begin_at_vectors(operands: tuple[Tensor, ...]) -> bool:
    """16-bit matrices of which every row (or column) begins at a multiple of VECTOR; whatever the number of rows."""
    return all(x.element_size() == 2 and max(x.stride()) % VECTOR == 0 for x in operands)


SMALL = Tiles(64, 128, 16, 8, 2, slices=1)
SQUARE = Tiles(128, 128, 64, 8, 3)
SHALLOW = Tiles(128, 128, 32, 8, 3)
CDNA = Tiles(128, 128, 64, 8, 2)
HOPPER = Tiles(128, 256, 64, 8, 3, group=32)
BLACKWELL = Tiles(128, 128, 64, 8, 4, group=32, slices=1)
LONG = Walk(1, 4096, 8)

# name, fused, head, capped, persistent, product, small, walk, shared bytes
CARDS = {
    row[0]: Card(*row)
    for row in (
        ("sm_80", False, Tiles(128, 256, 32, 8, 3), SHALLOW, None, SHALLOW, SMALL, LONG, 166_912),
        ("sm_86", False, SHALLOW, SHALLOW, None, SHALLOW, SMALL, LONG, 101_376),
        ("sm_90", False, SQUARE, SQUARE, HOPPER, SQUARE, SMALL, LONG, 232_448),
        (
            "sm_100",
            False,
            SQUARE,
            SQUARE._replace(slices=1),
            BLACKWELL,
            SQUARE,
            SMALL._replace(slices=2),
            LONG,
            232_448,
        ),
        ("gfx942", False, CDNA, CDNA, None, CDNA, SMALL, LONG, 65_536),
    )
}
_FEW = Tiles(32, 256, 64, 4, 1, group=2)
INTERPRETER = Card("interpreter", False, _FEW, _FEW, None, _FEW, _FEW, Walk(32, 256, 4), 1 << 30)


def card_for(device: torch.device) -> Card:
    """The device's row, or the nearest one's."""
    if device.type == "cpu":
        return INTERPRETER
    if torch.version.hip is not None:
        return CARDS["gfx942"]
    major, minor = torch.cuda.get_device_capability(device)
    return CARDS[nearest(major, minor)]


def nearest(major: int, minor: int) -> str:
    """The newest row that is not newer than the device, of the same generation where there is one."""
    if major >= 12:  # consumer Blackwell: the shared memory and the instructions of sm_86
        return "sm_86"
    if major >= 10:
        return "sm_100"
    if major == 9:
        return "sm_90"
    return "sm_80" if (major, minor) == (8, 0) else "sm_86"
