"""The Triton backend: kernels for NVIDIA and AMD cards, and for a CPU through Triton's interpreter.

In the order the data flows:

    scoring.py   hidden states -> log-probs and E': the two routes of the head
      library      product.py (the library's, or ours) -> rows.py (a row of logits -> its sums and its E')
      fused        labels.py (the offset) -> head.py or head_persistent.py (product with the exponential epilogue)
                   -> merge.py (sums over tiles; which rows to redo)
    segments.py  log-probs -> sequence sums          pairs.py   sums, EXPO's loss and coefficients in one launch
    backprop     scale.py (row scales) around product.py; labels.py (the label's entries); columns.py (db)

    device.py    the formulas they share             tuning.py  tile shapes an architecture
    budget.py    what fits the workspace             ops.py     the operations as torch.library custom ops

docs/kernels.md has what each reads and writes, and what it compiles to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Head, Score, Stats
from expo_kernels.kernels.triton import ops
from expo_kernels.kernels.triton.budget import chunk_rows, padded
from expo_kernels.kernels.triton.pairs import NAMES
from expo_kernels.types import PairForm

NAME = "triton"
PAIR_FORMS = frozenset(NAMES)


def new_workspace(rows: int, V: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows begin at whole vectors, which tensor descriptors and fast products ask for."""
    return torch.empty(rows, padded(V), dtype=dtype, device=device)[:, :V]


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


def pair_terms(
    form: PairForm, logp: Tensor, weights: Tensor | None, offsets: Tensor, lengths: Tensor, reference: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return ops.pair_terms(*form, logp, weights, offsets, lengths, reference)


__all__ = [
    "NAME", "PAIR_FORMS", "backprop", "chunk_rows", "logprob", "new_workspace", "pair_terms", "score", "segment_sum",
]  # fmt: skip
