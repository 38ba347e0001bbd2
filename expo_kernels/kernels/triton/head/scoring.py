"""Hidden states -> log-probs and, where wanted, E' in the workspace: the two routes of the head, one interface.

    library   the library's product into the logits of a few rows, then the row kernels: exact, portable
    fused     the product with the exponential epilogue, which never writes a logit; flagged rows are redone

Which one a card takes stands in tuning/cards.py. It never depends on the number of rows, and forward only takes the
same one, so a log-prob has the same bits however it is asked for. fp16 and float64 always take the library's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Head, accumulator
from expo_kernels.kernels.triton.budget import budget, padded
from expo_kernels.kernels.triton.head.fused import head_tiles, new_partials
from expo_kernels.kernels.triton.head.fused_persistent import head_tiles_persistent, takes_descriptors
from expo_kernels.kernels.triton.head.labels import label_logits
from expo_kernels.kernels.triton.head.merge import RowResults, merge, new_results
from expo_kernels.kernels.triton.head.rows import score_logits
from expo_kernels.kernels.triton.product import product
from expo_kernels.kernels.triton.tuning import Card, card_for


def score_rows(h: Tensor, y: Tensor, head: Head, e: Tensor | None, workspace_bytes: int, stats: bool) -> RowResults:
    """h [n, D], y [n] -> log-probs and the gradient's numbers [n]; e [n, V] where given receives E'."""
    card = card_for(h.device)
    if card.fused and h.dtype in (torch.bfloat16, torch.float32):
        return _fused(h, y, head, e, stats, card)
    return _library(h, y, head, e, workspace_bytes, stats, card)


def _library(
    h: Tensor, y: Tensor, head: Head, e: Tensor | None, workspace_bytes: int, stats: bool, card: Card
) -> RowResults:
    (n, D), V = h.shape, head.w.shape[0]
    block = budget(D, V, h.dtype, workspace_bytes).logit_rows
    out = new_results(h, stats)
    logits = h.new_empty(block, padded(V), dtype=accumulator(h.dtype))[:, :V]
    for first in range(0, n, block):
        rows = slice(first, first + block)
        product(_padded_rows(h[rows], block), head.w.T, logits, add=False)
        part, stored = RowResults(*(x[rows] for x in out)), None if e is None else e[rows]
        score_logits(logits[: part.logp.shape[0]], y[rows], head, stored, h, part, card)
    return out


def _padded_rows(h: Tensor, rows: int) -> Tensor:
    """The last block's bits must not depend on its size."""
    return h if h.shape[0] == rows else torch.cat([h, h.new_zeros(rows - h.shape[0], h.shape[1])])


def _fused(h: Tensor, y: Tensor, head: Head, e: Tensor | None, stats: bool, card: Card) -> RowResults:
    n, V = h.shape[0], head.w.shape[0]
    out = new_results(h, stats)
    if n == 0:
        return out
    label, flagged = label_logits(h, y, head), h.new_empty(n, dtype=torch.int8)
    offset = label.clone()
    tiles = card.head_tiles(head.softcap, h, head.w)
    if card.persistent is not None and takes_descriptors(h, head, e):
        partials = new_partials(h, V, card.persistent, stats)
        head_tiles_persistent(h, y, head, offset, e, partials, card.persistent)
    else:
        partials = new_partials(h, V, tiles, stats)
        head_tiles(h, y, head, offset, None, e, partials, tiles)
    merge(partials, label, offset, flagged, head.softcap, out, redo=False)
    # always launched: whether a row is flagged is known on the device only
    again = new_partials(h, V, tiles, stats)
    head_tiles(h, y, head, offset, flagged, e, again, tiles)
    merge(again, label, offset, flagged, head.softcap, out, redo=True)
    return out
