"""Sequence log-probs -> loss and coefficients of a run of groups, with what no objective has to think of: empty groups
and values that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from expo_kernels.types import Counts, ForwardOnly, Objective, SequenceLogprobs, Terms


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An objective with everything it declared, over all groups of a batch."""

    objective: Objective
    lengths: Tensor  # [K, P] int64
    reference: Tensor | None  # [K, P] or [R, K, P]
    columns: Mapping[str, Tensor]  # [P] or [K, P]
    divisors: Counts
    forward_only_lengths: Tensor  # [F] int64
    forward_only_reference: Tensor | None  # [F]; None where not declared

    def __call__(self, policy: Tensor, begin: int, end: int, forward_only: Tensor | None = None) -> Terms:
        """policy [K, end - begin] -> the terms of groups [begin, end), undivided.
        forward_only [F]: the sums of those sequences, where the objective declares them."""
        lengths = self.lengths[:, begin:end]
        reference = None if self.reference is None else self.reference[..., begin:end].to(policy.dtype)
        active = (lengths > 0).all(0)  # [G]
        columns = {name: column[..., begin:end].to(policy.dtype) for name, column in self.columns.items()}
        others = None if forward_only is None else self._others(forward_only)
        # an empty sequence has length 1 here, so that a mean is 0 and not 0 / 0; its group is masked below
        counted = lengths.clamp(min=1).to(policy.dtype)
        terms = self.objective(SequenceLogprobs(policy, counted, reference, columns, self.divisors, active, others))
        if not isinstance(terms, Terms):
            raise TypeError(f"{type(self.objective).__name__}: want Terms to be returned, got {type(terms).__name__}")
        terms.check(type(self.objective).__name__, *policy.shape)
        finite = policy.isfinite().all(0)
        if reference is not None:
            finite = finite & reference.flatten(0, -2).isfinite().all(0)
        for column in columns.values():
            finite = finite & column.isfinite().view(-1, end - begin).all(0)
        if others is not None:  # in every group's loss
            finite = finite & others.policy.isfinite().all()
            finite = finite if others.reference is None else finite & others.reference.isfinite().all()
        return Terms(
            loss=_settle(terms.loss, active, finite),
            coefficients=_settle(terms.coefficients, active, finite),
            rewards=terms.rewards,
            margin=terms.margin,
        )

    def _others(self, policy: Tensor) -> ForwardOnly:
        reference = self.forward_only_reference
        return ForwardOnly(
            policy, None if reference is None else reference.to(policy.dtype), self.forward_only_lengths > 0
        )

    def primary_divisor(self) -> float | Tensor:
        return self.divisors.tokens if self.objective.needs.divisor == "tokens" else self.divisors.groups


def _settle(values: Tensor, active: Tensor, finite: Tensor) -> Tensor:
    """0 for an inactive group; NaN for one with a log-prob that is not finite, which outweighs everything else: no
    objective (a hinge, say) may hide it behind a zero."""
    return torch.where(finite, torch.where(active, values, 0.0), torch.nan)
