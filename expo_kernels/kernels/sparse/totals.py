"""What a sparse gradient reports, as sums that chunks can add up, and the report they make."""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.kernels.sparse.choice import Choice
from expo_kernels.sparsity import Sparsity, SparsityReport, Unbiased

# of a chunk: sums, but MAXIMUM; in float64. H, W, B: of the distances' squares, for Certified W and B of the distances
ENTRIES, KEPT, ROWS, EXACT, WEIGHT, DROPPED, MAXIMUM, H, W, B = range(10)
SIZE = 10


def new_totals(device: torch.device) -> Tensor:
    return torch.zeros(SIZE, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def add_exact(totals: Tensor, c: Tensor, V: int) -> None:
    """c [n] of rows that leave nothing out."""
    n = c.shape[0]
    totals[ENTRIES] += n * V
    totals[KEPT] += n * V
    totals[ROWS] += n
    totals[EXACT] += n
    totals[WEIGHT] += c.abs().sum()


def add_block(
    totals: Tensor, choice: Choice, c: Tensor, unit: Tensor, inverse: Tensor, h_norms: Tensor, w_norms: Tensor
) -> None:
    """Of a block of n rows: c [n] (scale included), unit the root mean square of the chunk's, inverse [n] = 1 / S."""
    n, V, wide = c.shape[0], w_norms.shape[0], totals.dtype
    lost = c.to(wide).abs() * inverse.to(wide) * choice.dropped.to(wide)  # [n] mass times |c|
    totals[ENTRIES] += n * V
    totals[KEPT] += n * choice.columns.shape[0]
    totals[ROWS] += n
    totals[WEIGHT] += c.to(wide).abs().sum()
    totals[DROPPED] += lost.sum()
    totals[MAXIMUM] = torch.maximum(totals[MAXIMUM], (lost / unit).max())
    if choice.weight is None:
        out = torch.ones(V, dtype=torch.bool, device=w_norms.device)
        out[choice.columns] = False
        largest = torch.where(out, w_norms, 0.0).max().to(wide)
        totals[H] += (lost * largest).square().sum()
        totals[W] += (lost * h_norms.to(wide)).sum()
        totals[B] += lost.sum()
    else:
        squares = choice.squares.to(wide)
        totals[H] += unit**2 * (squares * w_norms.to(wide).square()).sum()
        totals[W] += unit**2 * choice.sums.to(wide).sum()
        totals[B] += unit**2 * n * squares.sum()


def merge(totals: Tensor, more: Tensor) -> Tensor:
    """Of two chunks."""
    both = totals + more
    both[MAXIMUM] = torch.maximum(totals[MAXIMUM], more[MAXIMUM])
    return both


def report(rule: Sparsity, totals: Tensor, repeats: Tensor | float = 1.0) -> SparsityReport:
    """repeats: the most tokens that one row of hidden predicts; their distances add up in its d_hidden."""
    share = torch.where(totals[ENTRIES] > 0, totals / totals[ENTRIES].clamp(min=1), 1.0)
    rows, weight = totals[ROWS].clamp(min=1), totals[WEIGHT]
    last = (totals[W], totals[B])
    d_weight, d_bias = (x.sqrt() for x in last) if isinstance(rule, Unbiased) else last
    return SparsityReport(
        kept=share[KEPT],
        exact=totals[EXACT] / rows,
        dropped_mean=torch.where(weight > 0, totals[DROPPED] / torch.where(weight > 0, weight, 1.0), 0.0),
        dropped_max=totals[MAXIMUM],
        d_hidden=(totals[H] * repeats).sqrt(),
        d_weight=d_weight,
        d_bias=d_bias,
    )
