"""What fits the workspace: every temporary of scoring and backprop is counted here, whatever the card.

    scoring    workspace [R, V] + gathered h [R, D] + the tiles' partial sums [R, V / 128] x 6
               + logits of a few rows (1/8; the library's route only)
    backprop   workspace [R, V] + h, scaled h, dh [R, D] + where rows are left out, a strip of their E' (1/16)
               + for fp16 a strip of dw (1/16)

A library product's bits depend on its shape, so logits are made in blocks of one fixed number of rows, the last ones
padded: a function of D, V, dtype and budget alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from expo_kernels.kernels.contract import accumulator
from expo_kernels.kernels.triton.tuning import MIN_COLUMNS

LOGIT_ROWS = 512
LANES = 16  # rows of the workspace and of the logits begin at whole vectors
PARTIALS = 6  # three sums a tile, and again for the redo


class Budget(NamedTuple):
    logit_rows: int  # rows whose logits stand in the accumulator's dtype at once
    chunk_rows: int  # R
    strip: int  # columns of E' gathered at once where rows are left out
    lifted: int  # rows of dw made at once in fp16


def padded(V: int) -> int:
    return -(-V // LANES) * LANES


def budget(D: int, V: int, dtype: torch.dtype, workspace_bytes: int) -> Budget:
    wide, narrow = accumulator(dtype).itemsize, dtype.itemsize
    logit_row = padded(V) * wide + D * narrow
    partials = PARTIALS * wide * -(-V // MIN_COLUMNS)
    chunk_row = padded(V) * narrow + D * (3 * narrow + wide) + partials + 16 * wide
    logit_share, strip_share = workspace_bytes // 8, workspace_bytes // 16
    fit = logit_share // logit_row
    rows = (workspace_bytes - logit_share - 2 * strip_share) // chunk_row
    if min(fit, rows) < 1:
        least = max(8 * logit_row, -(-chunk_row * 16 // 12) + 16)
        raise ValueError(
            f"workspace_bytes: want at least {least} for one row of V {V} and D {D} in {dtype}, got {workspace_bytes}"
        )
    logit_rows = min(LOGIT_ROWS, 1 << (fit.bit_length() - 1))
    rows -= rows % logit_rows if rows > logit_rows else 0  # a full chunk has no padded block
    strip, lifted = strip_share // (rows * narrow), strip_share // (D * wide)
    return Budget(logit_rows, rows, max(1, min(strip, V)), max(1, min(lifted, V)))


def chunk_rows(D: int, V: int, dtype: torch.dtype, workspace_bytes: int) -> int:
    return budget(D, V, dtype, workspace_bytes).chunk_rows
