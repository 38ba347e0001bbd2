"""The portable floor: plain torch on every device, exact, in a bounded workspace.

budget.py  what fits the workspace       rows.py  logits -> exponentials, sums and the label's entry
ops.py     the operations a compiler sees, as torch.library custom ops

docs/math.md, part 2, has the algorithm. Products take fp32 operands (float64 for float64), so bf16 and fp16 inputs
are multiplied exactly and summed in fp32, one tile of the vocabulary at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Head, Score, Stats
from expo_kernels.kernels.plain import ops
from expo_kernels.kernels.plain.budget import chunk_rows

NAME = "plain"
PAIR_FORMS: frozenset[str] = frozenset()


def new_workspace(rows: int, V: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(rows, V, dtype=dtype, device=device)


def logprob(h: Tensor, y: Tensor, head: Head, workspace_bytes: int, stats: bool) -> Stats:
    return Stats(*ops.logprob(h, y, *head, workspace_bytes, stats))


def score(
    h: Tensor, y: Tensor, head: Head, workspace: Tensor, workspace_bytes: int, stats: bool
) -> tuple[Score, Stats]:
    stored = workspace[: h.shape[0]]
    inverse, pull, *rest = ops.score(h, y, *head, stored, workspace_bytes, stats)
    return (stored, inverse, pull, y), Stats(*rest)


def backprop(
    score: Score, c: Tensor, h: Tensor, head: Head, dw: Tensor | None, db: Tensor | None,
    rows: Tensor | None, need_h: bool, workspace_bytes: int,
) -> Tensor:  # fmt: skip
    return ops.backprop(*score, c, h, head.w, head.scale, dw, db, rows, need_h, workspace_bytes)


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    return ops.segment_sum(values, offsets)


__all__ = ["NAME", "PAIR_FORMS", "backprop", "chunk_rows", "logprob", "new_workspace", "score", "segment_sum"]
