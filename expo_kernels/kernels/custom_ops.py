"""What every backend registers with torch.library, once: the contract's functions made of its operations, and the
shapes that a compiler is told.

A backend's operations take tensors and scalars alone, hence a Head and a Score unfolded:

    logprob(h, y, w, bias, softcap, scale, workspace_bytes, stats) -> logp, entropy, is_argmax
    score(h, y, w, bias, softcap, scale, stored, workspace_bytes, stats) -> inverse, pull, logp, entropy, is_argmax
    backprop(stored, inverse, pull, y, c, h, w, scale, dw, db, rows, need_h, workspace_bytes) -> dh
    sparse_backprop(what backprop takes, rule, amount, seed, first) -> dh, totals
    segment_sum(values, offsets) -> sums        pair_terms(*form, logp, weights, offsets, lengths, reference)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.library import CustomOpDef

from expo_kernels.kernels.contract import Head, Score, Stats, accumulator
from expo_kernels.kernels.sparse.rules import scalars_of
from expo_kernels.kernels.sparse.totals import new_totals
from expo_kernels.sparsity import Sparsity
from expo_kernels.types import PairForm


@dataclass(frozen=True, eq=False)
class CustomOps:
    """A contract.Backend whose work is done by the operations of a module."""

    name: str
    ops: ModuleType
    chunk_rows: Callable[[int, int, torch.dtype, int], int]
    row_stride: Callable[[int], int]  # V -> entries from one row of the workspace to the next
    pair_forms: frozenset[str] = frozenset()
    stored_dtype: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype  # the inputs' -> the workspace's
    prepared: Callable[[Tensor], Tensor] = lambda buffer: buffer  # a large one, before anything is written

    def new_workspace(self, rows: int, V: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        made = torch.empty(rows, self.row_stride(V), dtype=self.stored_dtype(dtype), device=device)
        return self.prepared(made)[:, :V]

    def logprob(self, h: Tensor, y: Tensor, head: Head, workspace_bytes: int, stats: bool) -> Stats:
        return Stats(*self.ops.logprob(h, y, *head, workspace_bytes, stats))

    def score(
        self, h: Tensor, y: Tensor, head: Head, workspace: Tensor, workspace_bytes: int, stats: bool
    ) -> tuple[Score, Stats]:
        stored = workspace[: h.shape[0]]
        inverse, pull, *rest = self.ops.score(h, y, *head, stored, workspace_bytes, stats)
        return (stored, inverse, pull, y), Stats(*rest)

    def backprop(
        self, score: Score, c: Tensor, h: Tensor, head: Head, dw: Tensor | None, db: Tensor | None,
        rows: Tensor | None, need_h: bool, workspace_bytes: int,
    ) -> Tensor:  # fmt: skip
        return self.ops.backprop(*score, c, h, head.w, head.scale, dw, db, rows, need_h, workspace_bytes)

    def sparse_backprop(
        self, score: Score, c: Tensor, h: Tensor, head: Head, dw: Tensor | None, db: Tensor | None,
        rows: Tensor | None, need_h: bool, workspace_bytes: int, rule: Sparsity, first: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        own = scalars_of(rule)
        return self.ops.sparse_backprop(
            *score, c, h, head.w, head.scale, dw, db, rows, need_h, workspace_bytes, *own, first
        )  # fmt: skip

    def segment_sum(self, values: Tensor, offsets: Tensor) -> Tensor:
        return self.ops.segment_sum(values, offsets)

    def pair_terms(
        self, form: PairForm, logp: Tensor, weights: Tensor | None, offsets: Tensor, lengths: Tensor,
        reference: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        return self.ops.pair_terms(*form, logp, weights, offsets, lengths, reference)


def register_shapes(
    logprob: CustomOpDef, score: CustomOpDef, backprop: CustomOpDef, sparse_backprop: CustomOpDef,
    segment_sum: CustomOpDef,
) -> None:  # fmt: skip
    """Tells a compiler what the operations return."""

    @logprob.register_fake
    def _(h, y, w, bias, softcap, scale, workspace_bytes, stats):
        return new_stats(h, stats)

    @score.register_fake
    def _(h, y, w, bias, softcap, scale, stored, workspace_bytes, stats):
        out = new_stats(h, stats)
        return torch.empty_like(out.logp), torch.empty_like(out.logp), *out

    @backprop.register_fake
    def _(stored, inverse, pull, y, c, h, w, scale, dw, db, rows, need_h, workspace_bytes):
        n = h.shape[0] if rows is None else rows.shape[0]
        return h.new_empty(n if need_h else 0, w.shape[1], dtype=accumulator(h.dtype))

    @sparse_backprop.register_fake
    def _(stored, inverse, pull, y, c, h, w, scale, dw, db, rows, need_h, workspace_bytes, rule, amount, seed, first):
        n = h.shape[0] if rows is None else rows.shape[0]
        return h.new_empty(n if need_h else 0, w.shape[1], dtype=accumulator(h.dtype)), new_totals(h.device)

    @segment_sum.register_fake
    def _(values, offsets):
        return values.new_empty(offsets.shape[0] - 1)


def new_stats(like: Tensor, stats: bool) -> Stats:
    """like [n, ...]: uninitialised results for n rows, the last two empty where not asked for."""
    n, dtype = like.shape[0], accumulator(like.dtype)
    asked = n if stats else 0
    return Stats(
        like.new_empty(n, dtype=dtype),
        like.new_empty(asked, dtype=dtype),
        like.new_empty(asked, dtype=torch.bool),
    )
