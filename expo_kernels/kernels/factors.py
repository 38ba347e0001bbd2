"""What multiplies the rows of a chunk in its gradient, once their coefficients are known."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from expo_kernels.kernels.contract import accumulator


class Factors(NamedTuple):
    """Of the n rows that take part: da = crowd stored + label onehot(y), times the head's scale, row by row."""

    crowd: Tensor  # [n] -c scale / S
    label: Tensor  # [n] c scale pull
    c: Tensor  # [n] dL/dlogp times the scale
    y: Tensor  # [n]
    h: Tensor  # [n, D]

    def new_dh(self, D: int, need_h: bool) -> Tensor:
        """[n, D] of zeros, or empty."""
        return self.crowd.new_zeros(self.h.shape[0] if need_h else 0, D)

    def at(self, rows: Tensor) -> Factors:
        return Factors(*(x.index_select(0, rows) for x in self))


def factors(
    inverse: Tensor, pull: Tensor, y: Tensor, c: Tensor, h: Tensor, scale: float, rows: Tensor | None
) -> Factors:
    """rows: those that take part; None: all."""
    wide = c.to(accumulator(h.dtype))
    wide = wide if scale == 1.0 else scale * wide
    made = Factors((wide * inverse).neg_(), wide * pull, wide, y, h)
    return made if rows is None else made.at(rows)
