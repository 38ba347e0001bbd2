"""The backend's functions on ranges of tokens: gather the hidden states, score, backprop. Every loop in ops uses it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Score, Stats
from expo_kernels.kernels.sparse.totals import merge
from expo_kernels.ops.gradients import Gradients
from expo_kernels.ops.problem import Problem

Range = tuple[int, int]
Ranges = tuple[Range, ...]


class Scored(NamedTuple):
    """Tokens whose score is in the workspace, until the next ones are scored."""

    score: Score
    h: Tensor  # [n, D]


class Chunks:
    """rows [N] and labels [N] are the batch's tokens in whatever order the caller counts its ranges in."""

    def __init__(self, problem: Problem, rows: Tensor, labels: Tensor) -> None:
        self.problem, self.head = problem, problem.head()
        self.rows, self.labels = rows, labels
        self.workspace = self.labels.new_empty(0)

    def reserve(self, rows: int) -> None:
        """The workspace of `score`, for at most `rows` tokens at once."""
        problem, V = self.problem, self.problem.weight.shape[0]
        self.workspace = problem.backend.new_workspace(rows, V, problem.dtype, problem.hidden.device)

    def gather(self, ranges: Ranges) -> Tensor:
        return self.problem.gather(take(self.rows, ranges))

    def log_prob(self, ranges: Ranges, stats: bool) -> Stats:
        """Forward only; nothing of it stays."""
        h, y = self.gather(ranges), take(self.labels, ranges)
        return self.problem.backend.logprob(h, y, self.head, self.problem.workspace_bytes, stats)

    def score(self, ranges: Ranges, stats: bool = False) -> tuple[Scored, Stats]:
        h, y = self.gather(ranges), take(self.labels, ranges)
        bytes_ = self.problem.workspace_bytes
        score, kernel_stats = self.problem.backend.score(h, y, self.head, self.workspace, bytes_, stats)
        return Scored(score, h), kernel_stats

    def unit_gradient(self, ranges: Ranges, scored: Scored, one: Tensor, totals: Tensor | None) -> Tensor:
        """d logp / dh of each token, [n, D]: a coefficient of 1 for all."""
        return self._gradient(ranges, scored, one, None, None, None, True, totals)

    def backprop(self, ranges: Ranges, scored: Scored | None, c: Tensor, logp: Tensor, made: Gradients) -> None:
        """c [n] = dL/dlogp: adds to dh, dw and db. scored None: these tokens are scored again.

        Rows with c = 0 may be left out, at the price of asking the device for their count; but never one whose log-prob
        [n] is NaN, which no zero hides.
        """
        active: Tensor | None = None
        if self.problem.skip_inactive:
            active = ((c != 0) | logp.isnan()).nonzero()[:, 0]
            if active.shape[0] == 0:
                return
            active = active if active.shape[0] < c.shape[0] else None
        scored = scored or self.score(ranges)[0]
        dh = self._gradient(ranges, scored, c, made.dw, made.db, active, made.hidden is not None, made.totals)
        if made.hidden is not None:
            rows = take(self.rows, ranges)
            made.hidden.add(rows if active is None else rows[active], dh)

    def _gradient(
        self, ranges: Ranges, scored: Scored, c: Tensor, dw: Tensor | None, db: Tensor | None, active: Tensor | None,
        need_h: bool, totals: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """-> dh; dw, db and totals are added to in place."""
        problem, rule = self.problem, self.problem.sparsity
        own = (scored.score, c, scored.h, self.head, dw, db, active, need_h, problem.workspace_bytes)
        if rule is None or totals is None:
            return problem.backend.backprop(*own)
        first = next(a for a, b in ranges if b > a)
        dh, more = problem.backend.sparse_backprop(*own, rule, first)
        totals.copy_(merge(totals, more))
        return dh


def size(ranges: Ranges) -> int:
    return sum(b - a for a, b in ranges)


def take(x: Tensor, ranges: Ranges) -> Tensor:
    """x [N, ...] at the tokens of `ranges`, one after the other."""
    pieces = [x[a:b] for a, b in ranges if b > a]
    if not pieces:
        return x[:0]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
