"""The operations of the plain backend as torch.library custom ops, so that a compiler sees one node for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from expo_kernels.kernels.contract import Stats, accumulator
from expo_kernels.kernels.custom_ops import new_stats, register_shapes
from expo_kernels.kernels.factors import Factors, factors
from expo_kernels.kernels.ordered import ordered_add
from expo_kernels.kernels.plain import products
from expo_kernels.kernels.plain import rows as row_kernel
from expo_kernels.kernels.plain.budget import budget
from expo_kernels.kernels.plain.rows import RowSums
from expo_kernels.kernels.plain.sparse import TorchParts, exact_path
from expo_kernels.kernels.sparse.crowd import Rows, crowd
from expo_kernels.kernels.sparse.rules import rule_of


class _Block(NamedTuple):
    rows: slice
    z: Tensor  # [n, V] exponentials, the label's entry 0; without padding
    sums: RowSums
    logp: Tensor
    entropy: Tensor
    is_argmax: Tensor


def _blocks(
    h: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None, scale: float,
    workspace_bytes: int, *, gradient: bool, stats: bool,
) -> Iterator[_Block]:  # fmt: skip
    """h [n, D], y [n] in blocks of at most budget.logit_rows rows. The only place that makes logits."""
    by = _products(h.dtype, w, workspace_bytes)
    z = by.new_logits(h, w.shape[0])
    for rows, h_block, k in by.row_blocks(h):
        full = h_block.shape[0]
        finite = h_block[:k].isfinite().all(-1)
        hidden = z.new_zeros(full)
        for columns, a in by.logits(h_block, w, z[:full]):
            hidden += row_kernel.transform(a, None if bias is None else bias[columns], softcap, scale)
        y_block = torch.cat([y[rows], y.new_zeros(full - k)])
        sums = row_kernel.exponentials(z[:full], y_block, softcap, gradient=gradient, moment=stats)
        sums = RowSums(*(x[:k] for x in sums))
        logp = row_kernel.log_prob(sums, finite & (hidden[:k] == 0))
        entropy, is_argmax = logp.new_empty(0), logp.new_empty(0, dtype=torch.bool)
        if stats:
            entropy, is_argmax = row_kernel.entropy(sums, logp), sums.label >= sums.offset
        yield _Block(rows, z[:k], sums, logp, entropy, is_argmax)


@custom_op("expo_kernels::plain_logprob", mutates_args=())
def logprob(
    h: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None, scale: float,
    workspace_bytes: int, stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """h [n, D], y [n], w [V, D] -> logp [n], entropy, is_argmax ([n], or empty without stats)."""
    out = new_stats(h, stats)
    for block in _blocks(h, y, w, bias, softcap, scale, workspace_bytes, gradient=False, stats=stats):
        _keep(out, block, stats)
    return out


@custom_op("expo_kernels::plain_score", mutates_args=("stored",))
def score(
    h: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None, scale: float,
    stored: Tensor, workspace_bytes: int, stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Fills stored [n, V] with E' in the input's dtype, 0 at the label; -> inverse [n], pull [n], what logprob returns.

        d logp / da_v = -inverse stored_v  (v != y)        d logp / da_y = pull

    The one downcast of scoring. The label's entry, by far the largest of a row, is not part of it. fp16 has too few
    exponents for the E' of a certain row (all tiny), so there a row is divided by its largest entry first, and
    `inverse` carries that factor.
    """
    out = new_stats(h, stats)
    inverse, pull = torch.empty_like(out.logp), torch.empty_like(out.logp)
    for block in _blocks(h, y, w, bias, softcap, scale, workspace_bytes, gradient=True, stats=stats):
        poison = torch.where(block.logp.isnan(), torch.nan, 1.0)  # what makes logp NaN makes dh NaN
        factor = poison / block.sums.total
        if h.dtype == torch.float16:
            largest = block.z.amax(-1)
            largest = torch.where(largest > 0, largest, 1.0)
            block.z.div_(largest[:, None])
            factor = factor * largest
        stored[block.rows].copy_(block.z)
        inverse[block.rows] = factor
        pull[block.rows] = poison * row_kernel.label_pull(block.sums, softcap)
        _keep(out, block, stats)
    return inverse, pull, *out


@custom_op("expo_kernels::plain_backprop", mutates_args=("dw", "db"))
def backprop(
    stored: Tensor, inverse: Tensor, pull: Tensor, y: Tensor, c: Tensor, h: Tensor, w: Tensor, scale: float,
    dw: Tensor | None, db: Tensor | None, rows: Tensor | None, need_h: bool, workspace_bytes: int,
) -> Tensor:  # fmt: skip
    """da = c (pull onehot(y) - inverse stored), row by row, and dh = scale da w, dw += scale da^T h, db += scale da:
    two products for the stored part, a gather and an ordered scatter for the label's."""
    by, made = _products(h.dtype, w, workspace_bytes), factors(inverse, pull, y, c, h, scale, rows)
    dh = made.new_dh(w.shape[1], need_h)
    own = dh if need_h else None
    products.crowd(by, stored, made.crowd, made.h, w, dw, db, rows, own)
    _finish(made, w, own, dw, db, by.sizes.label_rows)
    return dh


@custom_op("expo_kernels::plain_sparse_backprop", mutates_args=("dw", "db"))
def sparse_backprop(
    stored: Tensor, inverse: Tensor, pull: Tensor, y: Tensor, c: Tensor, h: Tensor, w: Tensor, scale: float,
    dw: Tensor | None, db: Tensor | None, rows: Tensor | None, need_h: bool, workspace_bytes: int,
    rule: str, amount: float, seed: int, first: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """backprop with the products of the columns that a rule keeps alone; -> dh, and the totals of its report."""
    by, made = _products(h.dtype, w, workspace_bytes), factors(inverse, pull, y, c, h, scale, rows)
    dh = made.new_dh(w.shape[1], need_h)
    own = dh if need_h else None
    exact = exact_path(by, stored, made, w, dw, db, rows)
    kept = Rows.of(stored, inverse, made, rows)
    parts = TorchParts(by)
    totals = crowd(rule_of(rule, amount, seed), parts, exact, kept, w, dw, db, own, first)
    _finish(made, w, own, dw, db, by.sizes.label_rows)
    return dh, totals


def _finish(made: Factors, w: Tensor, dh: Tensor | None, dw: Tensor | None, db: Tensor | None, step: int) -> None:
    """The factor of each row, which the products left out of dh, and the labels' part, `step` rows at once."""
    if dh is not None:
        dh.mul_(made.crowd[:, None])
    for i in range(0, made.h.shape[0], step):
        y, h, label = made.y[i : i + step], made.h[i : i + step], made.label[i : i + step, None]
        if dh is not None:
            dh[i : i + step].addcmul_(w[y].to(dh.dtype), label)
        if dw is not None:
            ordered_add(dw, y, h.to(dw.dtype) * label)
    if db is not None:
        ordered_add(db, made.y, made.label)


@custom_op("expo_kernels::plain_segment_sum", mutates_args=())
def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """values [n], offsets [S+1] -> [S]: summed in float64, each segment on its own, then cast once."""
    wide = values if values.device.type == "mps" else values.double()
    if values.numel() == 0:
        return values.new_zeros(offsets.shape[0] - 1)
    return torch.segment_reduce(wide, "sum", offsets=offsets).to(values.dtype)


def _products(dtype: torch.dtype, w: Tensor, workspace_bytes: int) -> products.Library:
    """Of operands in the accumulator's dtype."""
    return products.Library(accumulator(dtype), budget(w.shape[1], w.shape[0], dtype, workspace_bytes))


def _keep(out: Stats, block: _Block, stats: bool) -> None:
    out.logp[block.rows] = block.logp
    if stats:
        out.entropy[block.rows], out.is_argmax[block.rows] = block.entropy, block.is_argmax


register_shapes(logprob, score, backprop, sparse_backprop, segment_sum)
