"""What fits the workspace: every temporary of scoring and backprop is counted here.

    scoring    workspace [R, V] + gathered h [R, D]        + fp32 logits of a few rows (1/8) + a tile of w (1/16)
    backprop   workspace [R, V] + h, dh, scaled h [R, D]   + a tile of w (1/16) + a tile of the score (1/16), its
               narrow copy where rows are left out (1/32), label entries of a few rows (1/32)

A log-prob's bits depend on the shape of the product it comes from, so that shape is a function of D, V, dtype and
budget alone, never of the number of rows: PRODUCT_ROWS rows (the last ones padded) by a fixed tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from expo_kernels.kernels.contract import accumulator

PRODUCT_ROWS = 128  # 0.94 of the speed of one product of the whole on a CPU, 64 rows 0.82 (docs/decisions/0002)
LOGIT_ROWS = 512
LABEL_ROWS = 64
TILE_BYTES = 2 << 20  # of w in the accumulator's dtype: stays in cache while every row block meets it
SLICES = 8  # the row kernel walks a row in this many slices, so its temporaries are an eighth of the logits
LANES = 16  # D is padded to whole vectors: a row's bits then do not depend on where it stands in a product


class Budget(NamedTuple):
    product_rows: int  # rows of one product
    logit_rows: int  # rows whose logits stand in the accumulator's dtype at once; a multiple of product_rows
    tile: int  # columns of the vocabulary in one product of scoring
    chunk_rows: int  # R
    chunk_tile: int  # columns of the vocabulary in one product of backprop
    label_rows: int  # rows whose label entries are added at once in backprop
    tile_bytes: int  # the share of a tile of w, or of what the native backend's own products pack


def padded(D: int) -> int:
    return -(-D // LANES) * LANES


def budget(D: int, V: int, dtype: torch.dtype, workspace_bytes: int) -> Budget:
    wide, narrow, width = accumulator(dtype).itemsize, dtype.itemsize, padded(D)
    logit_row = (V + width) * wide
    chunk_row = V * narrow + D * (3 * narrow + 2 * wide) + 8 * wide
    logit_share, tile_share = workspace_bytes // 8, workspace_bytes // 16
    fit = logit_share // logit_row
    rows = (workspace_bytes - logit_share - tile_share) // chunk_row
    columns = tile_share // (width * wide)
    if min(fit, rows, columns) < 1:
        least = max(8 * logit_row, 16 * width * wide, -(-chunk_row * 16 // 13) + 16)
        raise ValueError(
            f"workspace_bytes: want at least {least} for one row of V {V} and D {D} in {dtype}, got {workspace_bytes}"
        )
    product_rows = min(PRODUCT_ROWS, 1 << (fit.bit_length() - 1))
    logit_rows = min(LOGIT_ROWS // product_rows, fit // product_rows) * product_rows
    tile = min(columns, max(TILE_BYTES // (width * wide), LANES), -(-V // SLICES))
    chunk_tile = max(1, min(columns, tile_share // (rows * wide), V))
    label_rows = max(1, min(LABEL_ROWS, tile_share // 2 // (D * (narrow + 2 * wide))))
    return Budget(product_rows, logit_rows, tile, rows, chunk_tile, label_rows, tile_share)


def chunk_rows(D: int, V: int, dtype: torch.dtype, workspace_bytes: int) -> int:
    return budget(D, V, dtype, workspace_bytes).chunk_rows
