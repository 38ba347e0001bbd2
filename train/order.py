"""Which examples each rank sees at each step: the same global batches whatever the number of ranks.

Micro-batch m of an epoch is a run of ranks * per_rank examples of the epoch's order, and each rank takes its part of
it. The last run may be short: a rank then has fewer examples, or none. Anchors come from an endless stream of their
own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class StepOrder(Sampler[list[int]]):
    """This rank's micro-batches as lists of indices: examples are 0 to count - 1, anchors follow."""

    def __init__(
        self, count: int, *, per_rank: int, ranks: int = 1, rank: int = 0, seed: int | None = None, anchors: int = 0,
        per_rank_anchors: int = 0,
    ) -> None:  # fmt: skip
        """seed None: in the data's order."""
        self.count, self.per_rank, self.ranks, self.rank, self.seed = count, per_rank, ranks, rank, seed
        self.anchors, self.per_rank_anchors = anchors, per_rank_anchors
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.count // (self.per_rank * self.ranks))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = self._permutation(self.count, self.epoch, 0)
        for m in range(len(self)):
            first = (m * self.ranks + self.rank) * self.per_rank
            yield order[first : first + self.per_rank] + self._anchors_of(self.epoch * len(self) + m)

    def _anchors_of(self, m: int) -> list[int]:
        """m counts micro-batches over all epochs; the stream is one permutation of the anchors after another."""
        first = (m * self.ranks + self.rank) * self.per_rank_anchors
        places = range(first, first + self.per_rank_anchors)
        return [self.count + self._permutation(self.anchors, at // self.anchors, 1)[at % self.anchors] for at in places]

    def _permutation(self, count: int, number: int, kind: int) -> list[int]:
        if self.seed is None:
            return list(range(count))
        known = self.__dict__.setdefault("_known", {})
        if known.get(kind, (None, None))[0] != number:
            random = torch.Generator().manual_seed(((self.seed * 2 + kind) << 20) + number)
            known[kind] = (number, torch.randperm(count, generator=random).tolist())
        return known[kind][1]
