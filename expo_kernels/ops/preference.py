"""Gradient in forward: hidden states -> sequence log-probs -> objective -> coefficients -> dh, dw, in one loop.

A unit of whole groups is scored, its coefficients follow in closed form, and its gradients are made at once from the
scores still in the workspace: three products in all. backward() only multiplies. A unit larger than the workspace
keeps its last part and scores the others again. Without a gradient, one product. docs/math.md, part 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Score
from expo_kernels.kernels.contract import Stats as KernelStats
from expo_kernels.layout import Unit, chunk_plan, empty_groups
from expo_kernels.ops.evaluate import Evaluation
from expo_kernels.ops.gradients import Attach, new_gradients
from expo_kernels.ops.problem import Problem, Trains
from expo_kernels.types import Batch, LossOutput, Terms

Range = tuple[int, int]


class _Tokens(NamedTuple):
    """The batch's tokens in group order, which makes every unit one range; sequences keep the caller's numbers."""

    rows: Tensor  # [N]
    labels: Tensor  # [N]
    segments: Tensor  # [N]
    weights: Tensor | None  # [N]
    offsets: Tensor  # [S+1], group by group


class _Part(NamedTuple):
    """A scored range of tokens: what its gradient needs."""

    score: Score
    h: Tensor  # [n, D]


def preference(problem: Problem, evaluation: Evaluation, stats: tuple[str, ...]) -> LossOutput:
    """The whole path. Every tensor but `loss` is detached."""
    trains = problem.trains()
    with torch.no_grad(), torch.autocast(problem.hidden.device.type, enabled=False):
        run = _Run(problem, evaluation, trains, bool(stats))
        if any(trains):
            run.with_gradient()
        else:
            run.forward_only()
        total, output = run.finish(stats)
        made = run.gradients
    if made is not None:
        dh = None if made.hidden is None else made.hidden.dh
        dw_is_out = problem.weight_gradient_out is not None
        total = Attach.apply(total, problem.hidden, problem.weight, problem.bias, dh, made.dw, made.db, dw_is_out)
    return output._replace(loss=total)


class _Run:
    """The state of one pass over a batch: log-probs as they become known, coefficients, gradients."""

    def __init__(self, problem: Problem, evaluation: Evaluation, trains: Trains, stats: bool) -> None:
        self.problem, self.evaluation, self.trains, self.stats = problem, evaluation, trains, stats
        self.batch, self.head = problem.batch, problem.head()
        self.tokens = _in_group_order(self.batch)
        host = self.batch.host
        self.K, self.P, self.S = host.roles, host.groups, len(host.lengths)
        N = self.tokens.rows.shape[0]
        new = problem.hidden.new_zeros
        self.logp = new(N, dtype=problem.accumulator)
        self.entropy = new(N if stats else 0, dtype=problem.accumulator)
        self.is_argmax = new(N if stats else 0, dtype=torch.bool)
        self.seq = new(self.S, dtype=problem.accumulator)
        self.c = new(self.S, dtype=problem.accumulator)
        self.terms: list[Terms] = []
        self.gradients = new_gradients(problem, trains) if any(trains) else None
        self._anchors_known_beforehand()

    def forward_only(self) -> None:
        self._log_probs(0, self.logp.shape[0])
        self._objective((0, self.P), (0, self._grouped_tokens()))

    def with_gradient(self) -> None:
        problem, host = self.problem, self.batch.host
        R = problem.chunk_rows
        plan = chunk_plan(host, R, self.evaluation.objective.needs.whole_batch)
        kept = max([0, *[_size(_kept(unit)) for unit in plan]])
        V = problem.weight.shape[0]
        workspace = problem.backend.new_workspace(kept, V, problem.dtype, problem.hidden.device)
        for unit in plan:
            self._unit(unit, workspace)
        self._log_probs(sum(host.lengths[: self.S - host.forward_only]), self.logp.shape[0])
        if not self.terms:  # anchors only
            self._objective((0, 0), (0, 0))

    def _unit(self, unit: Unit, workspace: Tensor) -> None:
        for part in unit.parts[:-1]:
            self._log_probs(*part)
        kept = _kept(unit)
        last = self._score(kept, workspace)
        if unit.parts:
            self._objective(unit.groups, (unit.parts[0][0], unit.parts[-1][1]))
        self._backprop(kept, last, workspace)
        for part in unit.parts[:-1]:
            self._backprop((part,), None, workspace)

    def _log_probs(self, begin: int, end: int) -> None:
        step = self.problem.chunk_rows
        for a in range(begin, end, step):
            ranges = ((a, min(a + step, end)),)
            h, y = self.problem.gather(_take(self.tokens.rows, ranges)), _take(self.tokens.labels, ranges)
            self._keep(ranges, self.problem.backend.logprob(h, y, self.head, self.problem.workspace_bytes, self.stats))

    def _score(self, ranges: tuple[Range, ...], workspace: Tensor, again: bool = False) -> _Part | None:
        if not _size(ranges):
            return None
        h, y = self.problem.gather(_take(self.tokens.rows, ranges)), _take(self.tokens.labels, ranges)
        stats = self.stats and not again
        score, kernel_stats = self.problem.backend.score(
            h, y, self.head, workspace, self.problem.workspace_bytes, stats
        )
        if not again:
            self._keep(ranges, kernel_stats)
        return _Part(score, h)

    def _keep(self, ranges: tuple[Range, ...], stats: KernelStats) -> None:
        at = 0
        for a, b in ranges:
            self.logp[a:b] = stats.logp[at : at + b - a]
            if self.stats:
                self.entropy[a:b] = stats.entropy[at : at + b - a]
                self.is_argmax[a:b] = stats.is_argmax[at : at + b - a]
            at += b - a

    def _objective(self, groups: Range, tokens: Range) -> None:
        """The groups' tokens are scored: their sums, their terms, their coefficients."""
        (a, b), K, P = groups, self.K, self.P
        policy = self._sums(self.tokens.offsets[a * K : b * K + 1], tokens).view(b - a, K).T.contiguous()  # [K, G]
        self.seq[: K * P].view(K, P)[:, a:b] = policy
        terms = self.evaluation(policy, a, b)
        self.c[: K * P].view(K, P)[:, a:b] = terms.coefficients / self.evaluation.primary_divisor()
        self.terms.append(terms)

    def _sums(self, offsets: Tensor, tokens: Range) -> Tensor:
        """offsets [s + 1] of the sequences that `tokens` hold -> their (weighted) sums [s]."""
        if offsets.shape[0] == 1:
            return self.logp.new_zeros(0)
        values = self.logp[slice(*tokens)]
        if self.tokens.weights is not None:
            values = values * self.tokens.weights[slice(*tokens)].to(values.dtype)
        return self.problem.backend.segment_sum(values, offsets - tokens[0])

    def _grouped_tokens(self) -> int:
        return sum(self.batch.host.lengths[: self.K * self.P])

    def _backprop(self, ranges: tuple[Range, ...], part: _Part | None, workspace: Tensor) -> None:
        """part: the score still in the workspace; None: score these tokens again."""
        if not _size(ranges):
            return
        c = self.c[_take(self.tokens.segments, ranges)]
        if self.tokens.weights is not None:
            c = c * _take(self.tokens.weights, ranges).to(c.dtype)
        rows, active = _take(self.tokens.rows, ranges), None
        if self.problem.skip_inactive:
            active = (c != 0).nonzero()[:, 0]
            if active.shape[0] == 0:
                return
            active = active if active.shape[0] < c.shape[0] else None
        part = part or self._score(ranges, workspace, again=True)
        assert part is not None and self.gradients is not None, "a range with tokens, in a pass with gradients"
        made = self.gradients
        dh = self.problem.backend.backprop(
            part.score, c, part.h, self.head, made.dw, made.db, active, made.hidden is not None,
            self.problem.workspace_bytes,
        )  # fmt: skip
        if made.hidden is not None:
            made.hidden.add(rows if active is None else rows[active], dh)

    def _anchors_known_beforehand(self) -> None:
        weights, scale = self.batch.anchor_weights, self.evaluation.objective.needs.anchor_scale
        if weights is not None and scale is not None:
            first = self.K * self.P
            self.c[first : first + weights.shape[0]] = (
                scale * weights.to(self.c.dtype) / self.evaluation.divisors.anchors
            )

    def finish(self, stats: tuple[str, ...]) -> tuple[Tensor, LossOutput]:
        host, first = self.batch.host, self.K * self.P
        tail = self._grouped_tokens()
        self.seq[first:] = self._sums(self.tokens.offsets[first:], (tail, self.logp.shape[0]))
        terms = _joined(self.terms)
        total = terms.loss.sum() / self.evaluation.primary_divisor()
        if host.anchors:
            anchors = slice(first, first + host.anchors)
            # an empty anchor has the sum 0; a NaN one is NaN here and, below, in dh of all its tokens
            total = total + (self.c[anchors] * self.seq[anchors]).sum()
            self._poison_anchors(tail)
        rewards = torch.full_like(self.seq, torch.nan)
        rewards[:first] = terms.rewards.flatten()
        asked = {"entropy": self.entropy, "is_argmax": self.is_argmax}
        return total, LossOutput(
            loss=total,
            seq_logps=self.seq,
            lengths=self.batch.lengths,
            rewards=rewards,
            terms=terms._replace(coefficients=self.c, rewards=rewards),
            empty=empty_groups(host),
            stats={name: self._caller_order(asked[name]) for name in stats},
            sparsity=None,
        )

    def _poison_anchors(self, begin: int) -> None:
        if self.gradients is not None and self.gradients.hidden is not None:
            end = begin + sum(self.batch.host.lengths[self.K * self.P :][: self.batch.host.anchors])
            bad = ~self.seq[self.tokens.segments[begin:end]].isfinite()
            self.gradients.hidden.poison(self.tokens.rows[begin:end], bad)

    def _caller_order(self, values: Tensor) -> Tensor:
        order = self.batch.by_group
        return values if order is None else torch.empty_like(values).index_copy_(0, order, values)


def _in_group_order(batch: Batch) -> _Tokens:
    host, order = batch.host, batch.by_group
    rows, labels, segments, weights = batch.rows, batch.labels, batch.segments, batch.token_weights
    if order is None:
        return _Tokens(rows, labels, segments, weights, batch.offsets)
    first = host.grouped_sequences
    by_group = batch.lengths[:first].view(host.roles, host.groups).T.flatten()
    ends = torch.cat([by_group, batch.lengths[first:]]).cumsum(0)
    return _Tokens(
        rows[order],
        labels[order],
        segments[order],
        None if weights is None else weights[order],
        torch.cat([ends.new_zeros(1), ends]),
    )


def _joined(terms: list[Terms]) -> Terms:
    margins = [t.margin for t in terms if t.margin is not None]
    return Terms(
        torch.cat([t.loss for t in terms]),
        torch.cat([t.coefficients for t in terms], dim=1),
        torch.cat([t.rewards for t in terms], dim=1),
        torch.cat(margins) if margins else None,
    )


def _kept(unit: Unit) -> tuple[Range, ...]:
    return (*unit.parts[-1:], unit.anchors)


def _size(ranges: tuple[Range, ...]) -> int:
    return sum(b - a for a, b in ranges)


def _take(x: Tensor, ranges: tuple[Range, ...]) -> Tensor:
    pieces = [x[a:b] for a, b in ranges if b > a]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
