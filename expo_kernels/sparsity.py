"""What a gradient may leave out of the softmax, and what it says of it (docs/sparsity.md). Values; imports nothing of
ours.

Both rules work on blocks of rows and whole columns of the vocabulary. They weigh a row by |c|, its coefficient, over
the root mean square of the chunk's: a saturated pair keeps next to nothing, a heavy one more. The label's own entry is
always exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

BUDGETS = ("row", "block")


@dataclass(frozen=True, kw_only=True)
class Certified:
    """The columns that matter least are left out while the mass of the softmax that goes with them stays within tau.

    tau      0 leaves out nothing: the exact gradient, bit for bit
    budget   "row": of every row, its mass times its weight. "block": of the rows of a block on average, which leaves
             out more; single rows may lose more than tau
    """

    tau: float
    budget: str = "row"

    def __post_init__(self) -> None:
        if isinstance(self.tau, bool) or not isinstance(self.tau, (int, float)) or not 0.0 <= self.tau < 1.0:
            raise ValueError(f"Certified: want tau from 0 to below 1, got {self.tau!r}")
        if self.budget not in BUDGETS:
            raise ValueError(f"Certified: want budget one of {', '.join(BUDGETS)}, got {self.budget!r}")


@dataclass(frozen=True, kw_only=True)
class Unbiased:
    """A column is kept with a probability q that follows its norm in the block, and counts 1 / q: the gradient's
    expectation is the exact one.

    theta   the norm from which on a column is certain to be kept; one of norm u is kept with the probability u / theta,
            rounded up to a power of two
    seed    the same seed draws the same columns; want another one for each step and each rank
    """

    theta: float
    seed: int

    def __post_init__(self) -> None:
        number = isinstance(self.theta, (int, float)) and not isinstance(self.theta, bool)
        if not number or not 0.0 < self.theta < float("inf"):
            raise ValueError(f"Unbiased: want theta a positive number, got {self.theta!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise ValueError(f"Unbiased: want seed from 0 to below 2^63, got {self.seed!r}")


Sparsity = Certified | Unbiased


class SparsityReport(NamedTuple):
    """Scalars, detached, of the rows that took part in a gradient (those with c = 0 may have been skipped).

    d_hidden, d_weight and d_bias are in the units of the gradient that backward() gives for an upstream gradient of 1.
    Certified: bounds on the distance from the exact gradient, of d_hidden and d_weight in the Frobenius norm, of d_bias
    in the sum of absolute values. Unbiased: bounds on the root of its mean square, all in the Frobenius norm.
    """

    kept: Tensor  # the share of the softmax's entries, rows by columns, that took part
    exact: Tensor  # the share of rows whose blocks kept too much for that to pay, and took the exact path
    dropped_mean: Tensor  # the mass of the softmax that was left out, on average over rows weighted by |c|
    dropped_max: Tensor  # the largest of a row, times its weight: what Certified(budget="row") holds within tau
    d_hidden: Tensor
    d_weight: Tensor
    d_bias: Tensor
