"""Token and sequence log-probs, differentiable, for any objective outside; and without a gradient, with statistics.

Frozen head: dh of each token is made in forward for a coefficient of 1 and only scaled in backward, two products.
Trained head: backward needs the scores again. Where all fit the workspace they are kept from forward: three products.
Else half the workspace keeps, the other half scores again: four products less what was kept. Nothing wants a gradient:
one product, and no workspace.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Score, Stats
from expo_kernels.kernels.sparse.totals import new_totals
from expo_kernels.layout import split_parts
from expo_kernels.ops.chunks import Chunks, Scored
from expo_kernels.ops.gradients import HiddenGradient, buffer_dtype, first_order_only, new_gradients, sparsity_report
from expo_kernels.ops.problem import Problem, Trains
from expo_kernels.types import TokenStats


def token_logprob(problem: Problem) -> Tensor:
    """-> logp [N] in the batch's order."""
    trains = problem.trains()
    if not any(trains):
        return token_stats(problem, statistics=False).logp
    operation = _FrozenHead if trains == Trains(True, False, False) else _TrainedHead
    return operation.apply(problem.hidden, problem.weight, problem.bias, problem.without_operands(), trains)


def sequence_logprob(problem: Problem) -> Tensor:
    """-> seq [S], sums weighted by the batch's token weights."""
    logp, batch = token_logprob(problem), problem.batch
    if batch.token_weights is not None:
        logp = logp * batch.token_weights.to(logp.dtype)
    return _SegmentSum.apply(logp, batch.offsets, batch.segments, problem.backend)


@torch.no_grad()
def token_stats(problem: Problem, statistics: bool = True) -> TokenStats:
    """Forward only: logp [N] and, with statistics, entropy [N] and is_argmax [N]."""
    N, R = problem.batch.rows.shape[0], problem.chunk_rows
    with torch.autocast(problem.hidden.device.type, enabled=False):
        chunks = _chunks(problem)
        parts = [chunks.log_prob(((a, min(a + R, N)),), statistics) for a in range(0, N, R)]
    if not parts:
        empty = problem.hidden.new_zeros(0, dtype=problem.accumulator)
        parts = [Stats(empty, empty, empty.bool())]
    logp, entropy, is_argmax = (torch.cat(xs) for xs in zip(*parts, strict=True))
    return TokenStats(logp, entropy, is_argmax) if statistics else TokenStats(logp)


def _chunks(problem: Problem) -> Chunks:
    return Chunks(problem, problem.batch.rows, problem.batch.labels)


class _SegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets, segments, backend):
        ctx.save_for_backward(segments)
        return backend.segment_sum(values, offsets)

    @staticmethod
    @first_order_only
    def backward(ctx, d_seq):
        (segments,) = ctx.saved_tensors
        return d_seq[segments], None, None, None


class _FrozenHead(torch.autograd.Function):
    """Keeps d logp / dh [N, D] of each token, in hidden's dtype (fp32 for fp16: its scale comes only in backward)."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, problem, trains):
        problem = problem.with_operands(hidden, weight, bias)
        N, R = problem.batch.rows.shape[0], problem.chunk_rows
        with torch.autocast(hidden.device.type, enabled=False):
            logp = hidden.new_zeros(N, dtype=problem.accumulator)
            unit = hidden.new_zeros(N, hidden.shape[-1], dtype=buffer_dtype(hidden.dtype))
            chunks = _chunks(problem)
            chunks.reserve(min(N, R))
            totals = None if problem.sparsity is None else new_totals(hidden.device)
            for a in range(0, N, R):
                own = ((a, min(a + R, N)),)
                scored, stats = chunks.score(own)
                logp[a : a + R] = stats.logp
                unit[a : a + R] = chunks.unit_gradient(own, scored, torch.ones_like(stats.logp), totals)
            _tell(problem, totals)
        ctx.save_for_backward(unit, problem.batch.rows)
        ctx.like = (hidden.shape, hidden.dtype, problem.batch.host.repeated_rows, R)
        return logp

    @staticmethod
    @first_order_only
    def backward(ctx, d_logp):
        unit, rows = ctx.saved_tensors
        shape, dtype, repeated, R = ctx.like
        with torch.autocast(unit.device.type, enabled=False):
            made = HiddenGradient(unit, shape, dtype, repeated)
            for a in range(0, unit.shape[0], R):
                b = min(a + R, unit.shape[0])
                made.add(rows[a:b], unit[a:b].to(d_logp.dtype) * d_logp[a:b, None])
        return made.dh.to(dtype).view(shape), None, None, None, None


def _tell(problem: Problem, totals: Tensor | None) -> None:
    """Whoever asked to hear what a sparse gradient left out."""
    made = sparsity_report(problem, totals)
    if made is not None and problem.on_sparsity is not None:
        problem.on_sparsity(made)


class _TrainedHead(torch.autograd.Function):
    """Keeps the last part's score, hence workspace, between forward and backward; scores the other parts again."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, problem, trains):
        problem = problem.with_operands(hidden, weight, bias)
        N, R = problem.batch.rows.shape[0], problem.chunk_rows
        # what is kept and what is scored again in backward share the one workspace
        parts = split_parts(0, N, R if N <= R else max(R // 2, 1))
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _chunks(problem)
            chunks.reserve(parts[-1][1] - parts[-1][0])
            logp = hidden.new_zeros(N, dtype=problem.accumulator)
            for a, b in parts[:-1]:
                logp[a:b] = chunks.log_prob(((a, b),), False).logp
            score: Score = ()
            if N:
                a, b = parts[-1]
                (score, _), stats = chunks.score(((a, b),))
                logp[a:b] = stats.logp
        ctx.save_for_backward(hidden, weight, bias, logp, *score)
        ctx.problem, ctx.trains, ctx.parts = problem.without_operands(), trains, parts
        return logp

    @staticmethod
    @first_order_only
    def backward(ctx, d_logp):
        hidden, weight, bias, logp, *score = ctx.saved_tensors
        problem = ctx.problem.with_operands(hidden, weight, bias)
        with torch.autocast(hidden.device.type, enabled=False):
            made = new_gradients(problem, ctx.trains)
            chunks = _chunks(problem)
            chunks.reserve(max([0, *[b - a for a, b in ctx.parts[:-1]]]))
            for i, (a, b) in enumerate(reversed(ctx.parts)):
                if a == b:
                    continue
                kept = Scored(tuple(score), chunks.gather(((a, b),))) if i == 0 else None
                chunks.backprop(((a, b),), kept, d_logp[a:b], logp[a:b], made)
            _tell(problem, made.totals)
        d_hidden = None if made.hidden is None else made.hidden.dh.to(hidden.dtype).view(hidden.shape)
        d_weight = None if made.dw is None or problem.weight_gradient_out is not None else made.dw.to(weight.dtype)
        d_bias = None if made.db is None else made.db.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None
