"""A row an architecture; written by `python -m tools.tuning --write` (tools/tuning/table.py).

`measured` names what was timed and where. What it does not name are shapes that compile without spills and fit the
card's shared memory (docs/kernels.md), never timed; so is the route (`fused`): False is the library's product.
"""

from __future__ import annotations

from expo_kernels.kernels.triton.tuning.types import Card, Tiles, Walk

ROWS = (
    Card(
        name="sm_80",
        fused=False,
        head=Tiles(rows=128, columns=256, depth=32, warps=8, stages=3, group=16, slices=2),
        capped=Tiles(rows=128, columns=128, depth=32, warps=8, stages=3, group=16, slices=2),
        persistent=None,
        product=Tiles(rows=128, columns=128, depth=32, warps=8, stages=3, group=16, slices=2),
        product_persistent=None,
        small=Tiles(rows=64, columns=128, depth=16, warps=8, stages=2, group=16, slices=1),
        walk=Walk(rows=1, columns=4096, warps=8, pieces=8),
        shared_bytes=166_912,
        own_products=False,
        measured=(),
    ),
    Card(
        name="sm_86",
        fused=False,
        head=Tiles(rows=128, columns=128, depth=32, warps=8, stages=3, group=16, slices=2),
        capped=Tiles(rows=128, columns=128, depth=32, warps=8, stages=3, group=16, slices=2),
        persistent=None,
        product=Tiles(rows=128, columns=128, depth=32, warps=8, stages=3, group=16, slices=2),
        product_persistent=None,
        small=Tiles(rows=64, columns=128, depth=16, warps=8, stages=2, group=16, slices=1),
        walk=Walk(rows=1, columns=4096, warps=8, pieces=8),
        shared_bytes=101_376,
        own_products=False,
        measured=(),
    ),
    Card(
        name="sm_90",
        fused=False,
        head=Tiles(rows=128, columns=128, depth=64, warps=8, stages=3, group=16, slices=2),
        capped=Tiles(rows=128, columns=128, depth=64, warps=8, stages=3, group=16, slices=2),
        persistent=Tiles(rows=128, columns=256, depth=64, warps=8, stages=3, group=32, slices=2),
        product=Tiles(rows=128, columns=128, depth=64, warps=8, stages=3, group=16, slices=2),
        product_persistent=Tiles(rows=128, columns=256, depth=64, warps=8, stages=4, group=16, slices=4),
        small=Tiles(rows=64, columns=128, depth=16, warps=8, stages=2, group=16, slices=1),
        walk=Walk(rows=1, columns=4096, warps=8, pieces=8),
        shared_bytes=232_448,
        own_products=False,
        measured=(),
    ),
    Card(
        name="sm_100",
        fused=False,
        head=Tiles(rows=128, columns=128, depth=64, warps=8, stages=3, group=16, slices=2),
        capped=Tiles(rows=128, columns=128, depth=64, warps=8, stages=3, group=16, slices=1),
        persistent=Tiles(rows=128, columns=128, depth=64, warps=8, stages=4, group=32, slices=1),
        product=Tiles(rows=128, columns=128, depth=64, warps=8, stages=3, group=16, slices=2),
        product_persistent=Tiles(rows=128, columns=256, depth=64, warps=8, stages=4, group=16, slices=4),
        small=Tiles(rows=64, columns=128, depth=16, warps=8, stages=2, group=16, slices=2),
        walk=Walk(rows=1, columns=4096, warps=8, pieces=8),
        shared_bytes=232_448,
        own_products=False,
        measured=(),
    ),
    Card(
        name="gfx942",
        fused=False,
        head=Tiles(rows=128, columns=128, depth=64, warps=8, stages=2, group=16, slices=2),
        capped=Tiles(rows=128, columns=128, depth=64, warps=8, stages=2, group=16, slices=2),
        persistent=None,
        product=Tiles(rows=128, columns=128, depth=64, warps=8, stages=2, group=16, slices=2),
        product_persistent=None,
        small=Tiles(rows=64, columns=128, depth=16, warps=8, stages=2, group=16, slices=1),
        walk=Walk(rows=1, columns=4096, warps=8, pieces=8),
        shared_bytes=65_536,
        own_products=False,
        measured=(),
    ),
)
