"""How many programs of a kernel a multiprocessor holds at once, and how many it is meant to hold.

Registers are handed out a warp at a time, eight a thread, within a quarter of the multiprocessor; every program costs a
KiB of shared memory beside its own. Limits: NVIDIA's CUDA C++ Programming Guide, table of technical specifications;
AMD's CDNA 3 instruction set, 512 vector registers a lane, and 64 KiB for a compute unit.
"""

from __future__ import annotations

from typing import NamedTuple

from expo_kernels.kernels.triton.tuning.types import Card, Tiles, Walk

QUARTERS, UNIT = 4, 8  # register files of a multiprocessor; registers a thread that are handed out at once
RESERVED = 1024  # bytes of shared memory that a program takes beside its own
TENSOR_COLUMNS = 512  # of a multiprocessor's tensor memory


class Limits(NamedTuple):
    """Of a multiprocessor."""

    warps: int
    programs: int
    registers: int  # a lane, in a quarter: registers a thread, times the warps that have them
    shared_bytes: int
    reserved: int = RESERVED


LIMITS = {
    "sm_80": Limits(64, 32, 512, 164 << 10),
    "sm_86": Limits(48, 16, 512, 100 << 10),
    "sm_90": Limits(64, 32, 512, 228 << 10),
    "sm_100": Limits(64, 32, 512, 228 << 10),
    "gfx942": Limits(32, 32, 512, 64 << 10, reserved=0),
}


def programs(card: str, *, registers: int, shared_bytes: int, warps: int, tensor_columns: int = 0) -> int:
    """That a multiprocessor holds at once; 0 where not even one fits."""
    limits = LIMITS[card]
    handed_out = -(-max(registers, 1) // UNIT) * UNIT
    by_registers = QUARTERS * (limits.registers // handed_out) // warps
    by_shared = limits.shared_bytes // (shared_bytes + limits.reserved) if shared_bytes else limits.programs
    by_tensor = TENSOR_COLUMNS // tensor_columns if tensor_columns else limits.programs
    return min(limits.programs, limits.warps // warps, by_registers, by_shared, by_tensor)


class Intended(NamedTuple):
    tile: tuple[int, ...]  # what it was decided for: rows, columns, depth, warps, or rows, columns, warps of a walk
    programs: int


# One is enough where a tile's stages, and nothing else, hide the way to memory: 128x256 in fp32 is 128 registers a
# thread of 8 warps, and no second one fits. Ampere's tensor cores read their operands from registers too, so there a
# tile of 128x128 with the exponential epilogue stands alone as well. Two are meant where operands come from shared
# memory and the tile is 128x128: one's epilogue runs under the other's product. Walks only wait for memory: four of
# 8 warps are half of what a multiprocessor can hold, and two thirds on sm_86.
# The tile is named, since a tile that a measurement puts in its place is judged by its time, and must fit once.
INTENDED = {
    ("sm_80", "head"): Intended((128, 256, 32, 8), 1),
    ("sm_80", "capped"): Intended((128, 128, 32, 8), 1),
    ("sm_80", "product"): Intended((128, 128, 32, 8), 1),
    ("sm_86", "head"): Intended((128, 128, 32, 8), 1),
    ("sm_86", "capped"): Intended((128, 128, 32, 8), 1),
    ("sm_86", "product"): Intended((128, 128, 32, 8), 1),
    ("sm_90", "head"): Intended((128, 128, 64, 8), 2),
    ("sm_90", "capped"): Intended((128, 128, 64, 8), 1),  # tanh and its slope stand in the registers of a second one
    ("sm_90", "persistent"): Intended((128, 256, 64, 8), 1),
    ("sm_90", "product"): Intended((128, 128, 64, 8), 1),  # dw adds to what it reads; logits and dh fit twice
    ("sm_90", "product_persistent"): Intended((128, 256, 64, 8), 1),
    ("sm_100", "head"): Intended((128, 128, 64, 8), 2),
    ("sm_100", "capped"): Intended((128, 128, 64, 8), 1),
    ("sm_100", "persistent"): Intended((128, 128, 64, 8), 1),  # four stages fill the shared memory
    ("sm_100", "product"): Intended((128, 128, 64, 8), 1),
    ("sm_100", "product_persistent"): Intended((128, 256, 64, 8), 1),
    ("gfx942", "head"): Intended((128, 128, 64, 8), 1),  # 64 KiB, all that a compute unit has
    ("gfx942", "capped"): Intended((128, 128, 64, 8), 1),
    ("gfx942", "product"): Intended((128, 128, 64, 8), 2),  # the usual one there: no library adds into fp32
    **{(card, "walk"): Intended((1, 4096, 8), 4) for card in LIMITS},
}


def intended(card: Card, field: str) -> int:
    """Of the tile in that field of the card's row; 1 where nothing more is meant."""
    known = INTENDED.get((card.name, field))
    return known.programs if known and known.tile == shape_of(getattr(card, field)) else 1


def shape_of(tile: Tiles | Walk) -> tuple[int, ...]:
    depth = (tile.depth,) if isinstance(tile, Tiles) else ()
    return (tile.rows, tile.columns, *depth, tile.warps)
