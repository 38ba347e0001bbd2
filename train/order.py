"""Which examples each rank sees at each step: the same global batches whatever the number of ranks.

StepOrder takes so many groups a rank and micro-batch: a run of ranks * per_rank examples of the epoch's order, of which
each rank takes its part; the last run may be short, and a rank then has fewer examples, or none. TokenOrder takes so
many tokens: steps are filled with whole groups, whose loads are balanced over ranks and micro-batches. Anchors come
from an endless stream beside either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


def permutation(count: int, seed: int, kind: int, number: int) -> list[int]:
    """kind: what is permuted; number: for the how-many-th time."""
    random = torch.Generator().manual_seed(((seed * 4 + kind) << 20) + number)
    return torch.randperm(count, generator=random).tolist()


class Anchors:
    """One permutation of the anchors after another, over all ranks, micro-batches and epochs."""

    def __init__(self, first: int, count: int, per_rank: int, seed: int) -> None:
        """first: the index of the first anchor, behind the examples."""
        self.first, self.count, self.per_rank, self.seed = first, count, per_rank if count else 0, seed
        self._known: dict[int, list[int]] = {}

    def of(self, m: int, ranks: int, rank: int) -> list[int]:
        """m counts micro-batches over all epochs."""
        begin = (m * ranks + rank) * self.per_rank
        return [self.first + self._at(place) for place in range(begin, begin + self.per_rank)]

    def _at(self, place: int) -> int:
        number = place // self.count
        if number not in self._known:
            self._known = {number - 1: self._known.get(number - 1, [])}  # a micro-batch may stand across two
            self._known[number] = permutation(self.count, self.seed, 1, number)
        return self._known[number][place % self.count]


NO_ANCHORS = Anchors(0, 0, 0, 0)


class Order(Sampler[list[int]]):
    """This rank's micro-batches as lists of indices: examples are 0 to count - 1, anchors follow."""

    most: int  # examples of a micro-batch
    epoch = 0

    def __init__(self, ranks: int, rank: int, anchors: Anchors) -> None:
        self.ranks, self.rank, self.anchors = ranks, rank, anchors

    def __len__(self) -> int:
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for m, micro in enumerate(self.micros()):
            yield micro + self.anchors.of(self.epoch * len(self) + m, self.ranks, self.rank)

    def micros(self) -> Iterator[list[int]]:
        """Without the anchors."""
        raise NotImplementedError


class StepOrder(Order):
    def __init__(
        self, count: int, *, per_rank: int, ranks: int = 1, rank: int = 0, seed: int | None = None,
        anchors: Anchors = NO_ANCHORS,
    ) -> None:  # fmt: skip
        """seed None: in the data's order."""
        super().__init__(ranks, rank, anchors)
        self.count, self.most, self.seed = count, per_rank, seed

    def __len__(self) -> int:
        return -(-self.count // (self.most * self.ranks))

    def micros(self) -> Iterator[list[int]]:
        n = self.count
        order = list(range(n)) if self.seed is None else permutation(n, self.seed, 0, self.epoch)
        for m in range(len(self)):
            first = (m * self.ranks + self.rank) * self.most
            yield order[first : first + self.most]


class TokenOrder(Order):
    """Steps are made once, of a permutation of the groups, and permuted anew each epoch: their number stays."""

    def __init__(
        self, lengths: Sequence[int], *, budget: int, micros: int = 1, ranks: int = 1, rank: int = 0, seed: int = 0,
        anchors: Anchors = NO_ANCHORS,
    ) -> None:  # fmt: skip
        """lengths: tokens of each group; budget: of a rank's micro-batch; micros: of a step."""
        super().__init__(ranks, rank, anchors)
        if max(lengths) > budget:
            over = sum(length > budget for length in lengths)
            raise ValueError(
                f"max_tokens: want at least the longest group's {max(lengths)} tokens beside the anchors, got {budget} "
                f"({over} groups are longer)"
            )
        self.seed, self.micros_a_step = seed, micros
        self.steps = [
            balanced(lengths, members, ranks * micros)
            for members in _filled(lengths, permutation(len(lengths), seed, 2, 0), ranks * micros, budget)
        ]
        self.most = max(len(members) for step in self.steps for members in step)

    def __len__(self) -> int:
        return len(self.steps) * self.micros_a_step

    def micros(self) -> Iterator[list[int]]:
        for s in permutation(len(self.steps), self.seed, 3, self.epoch):
            for m in range(self.micros_a_step):
                yield self.steps[s][m * self.ranks + self.rank]


def balanced(lengths: Sequence[int], members: Sequence[int], bins: int) -> list[list[int]]:
    """The members in so many bins of about the same load, the heaviest bins first, so that ranks that work side by side
    have like loads. Longest first into the lightest bin."""
    loads, made = [0] * bins, [[] for _ in range(bins)]  # type: tuple[list[int], list[list[int]]]
    for index in sorted(members, key=lambda i: (-lengths[i], i)):
        lightest = min(range(bins), key=lambda b: (loads[b], b))
        loads[lightest] += lengths[index]
        made[lightest].append(index)
    return [made[b] for b in sorted(range(bins), key=lambda b: (-loads[b], b))]


def _filled(lengths: Sequence[int], order: Sequence[int], bins: int, budget: int) -> Iterator[list[int]]:
    """Runs of the order, each as long as its balanced bins stay within the budget."""
    first = 0
    while first < len(order):
        total, most = 0, first
        while most < len(order) and total + lengths[order[most]] <= bins * budget:
            total += lengths[order[most]]
            most += 1
        while most > first + 1 and _heaviest(lengths, order[first:most], bins) > budget:
            most -= 1
        yield list(order[first:most])
        first = most


def _heaviest(lengths: Sequence[int], members: Sequence[int], bins: int) -> int:
    return max(sum(lengths[i] for i in part) for part in balanced(lengths, members, bins))
