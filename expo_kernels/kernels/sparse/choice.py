"""Which columns of a block of rows take part, and what that leaves out (docs/sparsity.md, parts 2 and 3).

n rows of a block, V columns; e [n, V] the stored exponentials, f [n] = r / S with r = |c| over the chunk's root mean
square of c, so that f e is the softmax's mass times the row's weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from expo_kernels.kernels.sparse.draws import STEPS, draws
from expo_kernels.sparsity import Sparsity, Unbiased

LEVELS, OCTAVE = 63, 4  # Certified cuts at one of 63 sizes, four to a factor of two
DENSE = 0.5  # a block that keeps more than this share of the columns takes the exact path: measured, docs/sparsity.md


class Columns(NamedTuple):
    """Of a block: [V] each, and what e's rows sum up to by groups of columns."""

    squares: Tensor  # sum over the rows of (f e)^2
    sums: Tensor  # sum over the rows of g e
    largest: Tensor  # max over the rows of f e
    masses: Callable[[Tensor, int], Tensor]  # group [V], number of groups -> [n, groups] sums of e


class Choice(NamedTuple):
    columns: Tensor  # [k] int64, ascending
    weight: Tensor | None  # [k] 1 / q; None: all 1
    dropped: Tensor  # [n] the sum of e over the columns left out
    squares: Tensor  # [V] sum over the rows of (f e)^2, each column times 1 / q - 1; empty for Certified
    sums: Tensor  # [V] the square of the sum of f |h| e, times 1 / q - 1; empty for Certified


def sum_factor(rule: Sparsity, f: Tensor, h_norms: Tensor) -> Tensor:
    """g [n] of Columns.sums: what the rule wants to know."""
    return f * h_norms if isinstance(rule, Unbiased) else f


def choose(rule: Sparsity, block: Columns, f: Tensor, number: int) -> Choice | None:
    """None where the block keeps too much, or a number in it is not finite; `number`: of the block, for its draws."""
    if not bool(f.isfinite().all()):
        return None
    if isinstance(rule, Unbiased):
        return _unbiased(rule, block, number)
    return _by_rows(rule.tau, block, f) if rule.budget == "row" else _on_average(rule.tau, block, f)


def _unbiased(rule: Unbiased, block: Columns, number: int) -> Choice | None:
    """q is rounded up to a power of two: P(draw < q) is then q to the last bit, and 1 / q multiplies without rounding
    in every format. It costs 4 % more products for the same variance (docs/sparsity.md, part 3)."""
    q = _power_of_two_above(block.squares.sqrt() / rule.theta).clamp(max=1.0)
    kept = draws(rule.seed, number, q.shape[0], q.device) < q
    columns = _unless_dense(kept)
    if columns is None:
        return None
    more = torch.where(q > 0, 1 / q - 1, 0.0)
    dropped = block.masses(kept.long(), 2)[:, 0]
    return Choice(columns, 1 / q[columns], dropped, block.squares * more, block.sums.square() * more)


def _power_of_two_above(x: Tensor) -> Tensor:
    """The least power of two that is not below x, at least the least draw above 0; 0 for 0."""
    mantissa, exponent = torch.frexp(x)  # x = mantissa 2^exponent with mantissa from 1/2 to below 1
    power = torch.ldexp(torch.ones_like(x), torch.where(mantissa == 0.5, exponent - 1, exponent))
    return torch.where(x > 0, power.clamp(min=1 / STEPS), 0.0)


def _by_rows(tau: float, block: Columns, f: Tensor) -> Choice | None:
    """Cuts at the largest level of a column's largest entry that every row's budget has room for."""
    level = ((block.largest / tau).log2() * OCTAVE).floor().clamp(-LEVELS, 0) + LEVELS  # -inf: 0
    masses = block.masses(level.long(), LEVELS + 1)[:, :LEVELS].cumsum(1)  # [n, LEVELS] left out by a cut after each
    fits = ((f[:, None] * masses) <= tau).all(0)
    cut = int(fits.long().cumprod(0).sum())
    columns = _unless_dense(level >= cut)
    if columns is None:
        return None
    dropped = masses[:, cut - 1] if cut else torch.zeros_like(f)
    return _certified(columns, dropped)


def _on_average(tau: float, block: Columns, f: Tensor) -> Choice | None:
    """Leaves out the columns of the smallest sums, as many as the rows' common budget has room for."""
    ascending, order = block.sums.sort(stable=True)
    count = int((ascending.double().cumsum(0) <= tau * f.shape[0]).sum())
    kept = torch.ones_like(ascending, dtype=torch.bool)
    kept[order[:count]] = False
    columns = _unless_dense(kept)
    return None if columns is None else _certified(columns, block.masses(kept.long(), 2)[:, 0])


def _certified(columns: Tensor, dropped: Tensor) -> Choice:
    return Choice(columns, None, dropped, dropped[:0], dropped[:0])


def _unless_dense(kept: Tensor) -> Tensor | None:
    columns = kept.nonzero()[:, 0]
    return None if columns.shape[0] > DENSE * kept.shape[0] else columns
