"""Gradient in forward: hidden states -> sequence log-probs -> objective -> coefficients -> dh, dw, in one loop.

A unit of whole groups is scored, its coefficients follow in closed form, and its gradients are made at once from the
scores still in the workspace: three products in all. backward() only multiplies. A unit larger than the workspace
keeps its last part and scores the others again. Without a gradient, one product. docs/math.md, part 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Stats
from expo_kernels.layout import Unit, chunk_plan, empty_groups
from expo_kernels.ops.chunks import Chunks, Range, Ranges, Scored, size, take
from expo_kernels.ops.evaluate import Evaluation
from expo_kernels.ops.gradients import Attach, new_gradients, sparsity_report
from expo_kernels.ops.problem import Problem, Trains
from expo_kernels.types import Batch, LossOutput, LossTerms, PairForm, Terms


class _Tokens(NamedTuple):
    """The batch's tokens in group order, which makes every unit one range; sequences keep the caller's numbers."""

    rows: Tensor  # [N]
    labels: Tensor  # [N]
    segments: Tensor  # [N]
    weights: Tensor | None  # [N]
    offsets: Tensor  # [S+1], group by group


def preference(problem: Problem, evaluation: Evaluation, stats: tuple[str, ...]) -> LossOutput:
    """The whole path. Every tensor but `loss` is detached."""
    trains = problem.trains()
    with torch.no_grad(), torch.autocast(problem.hidden.device.type, enabled=False):
        run = _Run(problem, evaluation, trains, bool(stats))
        if any(trains):
            run.with_gradient()
        else:
            run.forward_only()
        total = run.total()
        made = run.gradients
    if made is not None:
        dh = None if made.hidden is None else made.hidden.dh
        dw_is_out = problem.weight_gradient_out is not None
        total = Attach.apply(total, problem.hidden, problem.weight, problem.bias, dh, made.dw, made.db, dw_is_out)
    return run.output(total, stats)


class _Run:
    """The state of one pass over a batch: log-probs as they become known, coefficients, gradients."""

    def __init__(self, problem: Problem, evaluation: Evaluation, trains: Trains, stats: bool) -> None:
        self.problem, self.evaluation, self.stats = problem, evaluation, stats
        self.batch, self.tokens = problem.batch, _in_group_order(problem.batch)
        self.chunks = Chunks(problem, self.tokens.rows, self.tokens.labels)
        host = self.batch.host
        self.K, self.P, self.S, self.N = host.roles, host.groups, len(host.lengths), self.tokens.rows.shape[0]
        new = problem.hidden.new_zeros
        self.logp = new(self.N, dtype=problem.accumulator)
        self.entropy = new(self.N if stats else 0, dtype=problem.accumulator)
        self.is_argmax = new(self.N if stats else 0, dtype=torch.bool)
        self.seq = new(self.S, dtype=problem.accumulator)
        self.c = new(self.S, dtype=problem.accumulator)
        self.terms: list[Terms] = []
        self.gradients = new_gradients(problem, trains) if any(trains) else None
        self._anchors_known_beforehand()

    def forward_only(self) -> None:
        self._log_probs(0, self.N)
        self._sum_forward_only()
        self._objective((0, self.P), (0, self._grouped_tokens()))

    def with_gradient(self) -> None:
        host = self.batch.host
        plan = chunk_plan(host, self.problem.chunk_rows, self.evaluation.objective.needs.whole_batch)
        self.chunks.reserve(max([0, *[size(_kept(unit)) for unit in plan]]))
        self._log_probs(self._trained_tokens(), self.N)
        self._sum_forward_only()
        for unit in plan:
            self._unit(unit)
        if not self.terms:  # anchors only
            self._objective((0, 0), (0, 0))

    def _unit(self, unit: Unit) -> None:
        """Score, then coefficients, then gradients; the last part's from the score that is still there."""
        for part in unit.parts[:-1]:
            self._log_probs(*part)
        kept, scored = _kept(unit), None
        if size(kept):
            scored, stats = self.chunks.score(kept, self.stats)
            self._keep(kept, stats)
        if unit.parts:
            self._objective(unit.groups, (unit.parts[0][0], unit.parts[-1][1]))
        self._backprop(kept, scored)
        for part in unit.parts[:-1]:
            self._backprop((part,), None)

    def _log_probs(self, begin: int, end: int) -> None:
        step = self.problem.chunk_rows
        for a in range(begin, end, step):
            ranges = ((a, min(a + step, end)),)
            self._keep(ranges, self.chunks.log_prob(ranges, self.stats))

    def _keep(self, ranges: Ranges, stats: Stats) -> None:
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
        offsets = self.tokens.offsets[a * K : b * K + 1]
        if self._pair_form is not None:
            policy, terms = self._fused_pairs(self._pair_form, groups, offsets, tokens)
        else:
            policy = self._sums(offsets, tokens).view(b - a, K).T.contiguous()  # [K, G]
            shown = self.seq[self.S - self.batch.host.forward_only :]
            declared = self.evaluation.objective.needs.forward_only
            terms = self.evaluation(policy, a, b, shown if declared else None)
        self.seq[: K * P].view(K, P)[:, a:b] = policy
        self.c[: K * P].view(K, P)[:, a:b] = terms.coefficients / self.evaluation.primary_divisor()
        self.terms.append(terms)

    @property
    def _pair_form(self) -> PairForm | None:
        """The objective's closed form, if the backend has it in one launch with the sums."""
        form = getattr(self.evaluation.objective, "pair_form", None)
        plain = not self.evaluation.columns and not self.evaluation.objective.needs.forward_only
        fused = plain and form is not None and form.name in self.problem.backend.pair_forms
        return form if fused and self.problem.accumulator == torch.float32 else None

    def _fused_pairs(self, form: PairForm, groups: Range, offsets: Tensor, tokens: Range) -> tuple[Tensor, Terms]:
        (a, b), weights, reference = groups, self.tokens.weights, self.evaluation.reference
        policy, *terms = self.problem.backend.pair_terms(
            form, self.logp[slice(*tokens)], None if weights is None else weights[slice(*tokens)],
            offsets - tokens[0], self.evaluation.lengths[:, a:b],
            None if reference is None else reference[:, a:b],
        )  # fmt: skip
        return policy, Terms(*terms)

    def _sums(self, offsets: Tensor, tokens: Range) -> Tensor:
        """offsets [s + 1] of the sequences that `tokens` hold -> their (weighted) sums [s]."""
        if offsets.shape[0] == 1:
            return self.logp.new_zeros(0)
        values = self.logp[slice(*tokens)]
        if self.tokens.weights is not None:
            values = values * self.tokens.weights[slice(*tokens)].to(values.dtype)
        return self.problem.backend.segment_sum(values, offsets - tokens[0])

    def _sum_forward_only(self) -> None:
        """Before any group, since an objective may look at them."""
        first = self.S - self.batch.host.forward_only
        self.seq[first:] = self._sums(self.tokens.offsets[first:], (self._trained_tokens(), self.N))

    def _trained_tokens(self) -> int:
        return sum(self.batch.host.lengths[: self.S - self.batch.host.forward_only])

    def _grouped_tokens(self) -> int:
        return sum(self.batch.host.lengths[: self.K * self.P])

    def _backprop(self, ranges: Ranges, scored: Scored | None) -> None:
        """scored: what is still in the workspace; None: score these tokens again."""
        if not size(ranges):
            return
        assert self.gradients is not None, "a pass with gradients"
        c = self.c[take(self.tokens.segments, ranges)]
        if self.tokens.weights is not None:
            c = c * take(self.tokens.weights, ranges).to(c.dtype)
        self.chunks.backprop(ranges, scored, c, take(self.logp, ranges), self.gradients)

    def _anchors_known_beforehand(self) -> None:
        weights, scale = self.batch.anchor_weights, self.evaluation.objective.needs.anchor_scale
        if weights is not None and scale is not None:
            first = self.K * self.P
            self.c[first : first + weights.shape[0]] = (
                scale * weights.to(self.c.dtype) / self.evaluation.divisors.anchors
            )

    def total(self) -> Tensor:
        """The scalar loss, once everything is scored."""
        anchors, first, tail = self.batch.host.anchors, self.K * self.P, self._grouped_tokens()
        last = self.S - self.batch.host.forward_only
        self.seq[first:last] = self._sums(self.tokens.offsets[first : last + 1], (tail, self._trained_tokens()))
        total = torch.cat([t.loss for t in self.terms]).sum() / self.evaluation.primary_divisor()
        if anchors:
            # an empty anchor has the sum 0; a NaN one is NaN here and, below, in dh of all its tokens
            total = total + (self.c[first : first + anchors] * self.seq[first : first + anchors]).sum()
            self._poison_anchors(tail)
        return total

    def output(self, loss: Tensor, stats: tuple[str, ...]) -> LossOutput:
        rewards = torch.full_like(self.seq, torch.nan)
        rewards[: self.K * self.P] = torch.cat([t.rewards for t in self.terms], dim=1).flatten()
        margins = [t.margin for t in self.terms if t.margin is not None]
        asked = {"entropy": self.entropy, "is_argmax": self.is_argmax}
        return LossOutput(
            loss=loss,
            seq_logps=self.seq,
            lengths=self.batch.lengths.clone(),
            rewards=rewards,
            terms=LossTerms(
                loss=torch.cat([t.loss for t in self.terms]),
                margin=torch.cat(margins) if margins else None,
                coefficients=self.c,
            ),
            empty=empty_groups(self.batch.host),
            stats={name: self._caller_order(asked[name]) for name in stats},
            sparsity=sparsity_report(self.problem, None if self.gradients is None else self.gradients.totals),
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


def _kept(unit: Unit) -> Ranges:
    return (*unit.parts[-1:], unit.anchors)
