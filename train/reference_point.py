"""KTO's reference point of a step: a mean over all its micro-batches and ranks, before any of them is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from train.batches import MicroBatch
from train.launch import world

Reference = Callable[[MicroBatch], Tensor | None]  # -> [S]
Policy = Callable[[MicroBatch], Tensor]  # -> [S]


@torch.no_grad()
def reference_point(micros: Sequence[MicroBatch], point: str | None, reference: Reference, policy: Policy) -> Tensor:
    """-> scalar >= 0: the mean of logp - reference, "mismatched": of prompts with other prompts' responses; "batch": of
    the step's own."""
    sums = torch.zeros(2, dtype=torch.float64, device=micros[0].batch.labels.device)
    for micro in micros:
        scored = micro.others if point == "mismatched" else micro
        assert scored is not None, "the collator makes them for this point"
        known = reference(scored)
        assert known is not None, "KTO has a reference"
        ratio = (policy(scored) - known).double()
        there = scored.batch.lengths > 0
        sums += torch.stack([torch.where(there, ratio, 0.0).sum(), there.sum().double()])
    if world() > 1:
        dist.all_reduce(sums)
    return (sums[0] / sums[1].clamp(min=1.0)).clamp(min=0.0).float()
