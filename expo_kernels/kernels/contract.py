"""What a backend is: a few functions of tensors and scalars on one chunk of rows.

The chunk loop, the plan and the objective stand above it; nothing here knows of sequences, groups or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from expo_kernels.sparsity import Sparsity
from expo_kernels.types import PairForm


class Head(NamedTuple):
    """a = scale * (h w^T + bias);  z = softcap * tanh(a / softcap), or a."""

    w: Tensor  # [V, D], the dtype of h
    bias: Tensor | None  # [V]
    softcap: float | None
    scale: float


class Stats(NamedTuple):
    logp: Tensor  # [n] in the accumulator's dtype; NaN where S or the label's logit is not finite
    entropy: Tensor  # [n], or empty where not asked for
    is_argmax: Tensor  # [n] bool, or empty


# what the gradient of a chunk needs, part of it in the workspace; which tensors these are is the backend's business
Score = tuple[Tensor, ...]


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def pair_forms(self) -> frozenset[str]:
        """The losses on pairs that pair_terms has, in fp32; a backend without any has no pair_terms."""

    def chunk_rows(self, D: int, V: int, dtype: torch.dtype, workspace_bytes: int) -> int:
        """R: rows whose score, and every temporary of scoring and backprop, fit the budget. Raises if none does."""

    def new_workspace(self, rows: int, V: int, dtype: torch.dtype, device: torch.device) -> Tensor: ...

    @property
    def prepared(self) -> Callable[[Tensor], Tensor]:
        """A large buffer -> itself, before anything is written there."""

    def logprob(self, h: Tensor, y: Tensor, head: Head, workspace_bytes: int, stats: bool) -> Stats:
        """Forward only: h [n, D], y [n] -> [n]. Stores nothing of size n * V. Same bits as score."""

    def score(
        self, h: Tensor, y: Tensor, head: Head, workspace: Tensor, workspace_bytes: int, stats: bool
    ) -> tuple[Score, Stats]: ...

    def backprop(
        self, score: Score, c: Tensor, h: Tensor, head: Head, dw: Tensor | None, db: Tensor | None,
        rows: Tensor | None, need_h: bool, workspace_bytes: int,
    ) -> Tensor:  # fmt: skip
        """c [n] = dL / dlogp -> dh in the accumulator's dtype, [n, D]; dw and db are added to in place.

        rows: only these rows take part, and dh has only them. Not need_h: dh is empty.
        """

    def sparse_backprop(
        self, score: Score, c: Tensor, h: Tensor, head: Head, dw: Tensor | None, db: Tensor | None,
        rows: Tensor | None, need_h: bool, workspace_bytes: int, rule: Sparsity, first: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """backprop with what `rule` leaves out; -> dh and the totals of its report (kernels/sparse/totals.py).

        first: the number of the chunk's first token in its pass, from which random draws follow.
        """

    def segment_sum(self, values: Tensor, offsets: Tensor) -> Tensor:
        """values [n], offsets [S+1] -> [S]; a sum's bits depend on its own values only."""

    def pair_terms(
        self, form: PairForm, logp: Tensor, weights: Tensor | None, offsets: Tensor, lengths: Tensor,
        reference: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """logp [n], weights [n], offsets [2 G + 1], lengths and reference [2, G] -> the sums [2, G], bit for bit those
        of segment_sum, and the loss [G], coefficients [2, G], rewards [2, G] and margin [G] that the objective's own
        formula would make of them."""


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of every sum: fp32, or the input's if wider."""
    return torch.float64 if dtype == torch.float64 else torch.float32
