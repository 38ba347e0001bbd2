"""One head over the scored tokens of one batch: the operands every operation works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Backend, Head, accumulator
from expo_kernels.sparsity import Sparsity, SparsityReport
from expo_kernels.types import Batch


class Trains(NamedTuple):
    """Which inputs want a gradient."""

    hidden: bool
    weight: bool
    bias: bool


@dataclass(frozen=True, eq=False)
class Problem:
    """Made by expo_kernels.inputs, which has validated it."""

    hidden: Tensor  # [..., D] as the caller gave it
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    softcap: float | None
    scale: float
    dtype: torch.dtype  # of the products' operands: hidden's own, or autocast's
    backend: Backend
    workspace_bytes: int
    batch: Batch
    weight_gradient_out: Tensor | None
    skip_inactive: bool
    sparsity: Sparsity | None = None  # None: the exact gradient
    on_sparsity: Callable[[SparsityReport], None] | None = None

    @property
    def accumulator(self) -> torch.dtype:
        return accumulator(self.dtype)

    @property
    def chunk_rows(self) -> int:
        V, D = self.weight.shape
        return self.backend.chunk_rows(D, V, self.dtype, self.workspace_bytes)

    def trains(self) -> Trains:
        if not torch.is_grad_enabled():
            return Trains(False, False, False)
        bias = self.bias is not None and self.bias.requires_grad
        return Trains(self.hidden.requires_grad, self.weight.requires_grad, bias)

    def head(self) -> Head:
        """The head's operands, detached; under autocast this casts the weight once."""
        bias = None if self.bias is None else self.bias.detach()
        return Head(self.weight.detach().to(self.dtype), bias, self.softcap, self.scale)

    def without_operands(self) -> Problem:
        """What an autograd function may keep beside the tensors it saves properly."""
        nothing = self.batch.rows.new_empty(0)
        return replace(self, hidden=nothing, weight=nothing, bias=None)

    def with_operands(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Problem:
        return replace(self, hidden=hidden, weight=weight, bias=bias)

    def with_batch(self, batch: Batch) -> Problem:
        return replace(self, batch=batch)

    def gather(self, rows: Tensor) -> Tensor:
        """rows [n] of the flattened hidden states -> [n, D]; a sliced hidden[:, :-1] is read where it lies."""
        hidden = self.hidden.detach()
        if hidden.ndim == 2 or hidden.is_contiguous():
            return hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows).to(self.dtype)
        return hidden[torch.unravel_index(rows, hidden.shape[:-1])].to(self.dtype)
