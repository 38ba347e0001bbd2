"""What a row of cards.py is made of: tiles, a walk, and which of them a matrix gets."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

VECTOR = 16  # what Triton knows a stride to be a multiple of, or not


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
    """A block of rows, walked this many columns at a time, by so many programs that each take a piece of the row."""

    rows: int
    columns: int
    warps: int
    pieces: int = 8


class Card(NamedTuple):
    name: str
    fused: bool  # bf16 heads go through the product with the exponential epilogue, not through the library's product
    head: Tiles
    capped: Tiles  # of the head under a soft cap, whose epilogue wants more registers
    persistent: Tiles | None  # of the head by tensor descriptors, where the card has them; not under a soft cap
    product: Tiles
    product_persistent: Tiles | None  # by tensor descriptors, where the card has them
    small: Tiles  # of both, for fp32 (on the card's ordinary units) and for rows that do not begin at whole vectors
    walk: Walk  # of the row kernels
    shared_bytes: int  # what one program may use
    own_products: bool = False  # of 16-bit operands: ours although the library has one
    measured: tuple[str, ...] = ()  # which of these were timed, where and when; the others were never

    def head_tiles(self, softcap: float | None, *operands: Tensor) -> Tiles:
        if not _begin_at_vectors(operands):
            return self.small
        return self.head if softcap is None else self.capped

    def product_tiles(self, *operands: Tensor) -> Tiles:
        return self.product if _begin_at_vectors(operands) else self.small


def _begin_at_vectors(operands: tuple[Tensor, ...]) -> bool:
    """16-bit matrices of which every row (or column) begins at a multiple of VECTOR; whatever the number of rows."""
    return all(x.element_size() == 2 and max(x.stride()) % VECTOR == 0 for x in operands)
