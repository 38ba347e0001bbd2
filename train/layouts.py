"""Token ids of prompts and responses -> what the body reads, and the Batch that the loss reads.

padded    a sequence a row, [S, T]
packed    all in one row, [1, L], without padding; positions begin anew with each prompt. Where prompts are shared,
          a group's prompt stands once and its responses follow, each seeing the prompt and itself
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expo_kernels.layout import from_packed, from_padded
from expo_kernels.types import IGNORE, Batch

Ids = Sequence[int]


class Group(NamedTuple):
    prompt: Ids  # at least one token
    responses: Sequence[Ids]  # K


class Inputs(NamedTuple):
    input_ids: Tensor  # [S, T] or [1, L]
    attention_mask: Tensor | None  # [S, T], 1 where a token is; None for a packed row
    position_ids: Tensor | None  # [1, L]
    parts: Tensor | None  # [2, L]: of each token of a packed row its segment, and 0 for a prompt, k for what follows it
    ends: Tensor | None = None  # [segments + 1] int32, where a packed row's segments begin, and its end
    longest: int = 0  # segment

    def map(self, change: Callable[[Any], Any]) -> Inputs:
        tensors = {name: change(value) for name, value in self._asdict().items() if isinstance(value, Tensor)}
        return self._replace(**tensors)


class Layout(NamedTuple):
    """How the collator lays out a micro-batch."""

    packed: bool = False
    shared_prompts: bool = False
    pad: int = 0  # any token: what is padding is known from lengths

    def __call__(
        self, groups: Sequence[Group], anchors: Sequence[Group] = (), anchor_weights: Tensor | None = None
    ) -> tuple[Inputs, Batch]:
        """Sequences go role by role over the groups, then the anchors, each a group of one response."""
        if not self.packed:
            return _padded(groups, anchors, anchor_weights, self.pad)
        return _packed(groups, anchors, anchor_weights, self.shared_prompts)


def _padded(
    groups: Sequence[Group], anchors: Sequence[Group], weights: Tensor | None, pad: int
) -> tuple[Inputs, Batch]:
    K = len(groups[0].responses)
    sequences = [(group.prompt, group.responses[k]) for k in range(K) for group in groups]
    sequences += [(anchor.prompt, anchor.responses[0]) for anchor in anchors]
    input_ids, mask, labels = pad_sequences(sequences, pad)
    batch = from_padded(labels, roles=K, anchors=len(anchors), anchor_weights=weights)
    return Inputs(input_ids, mask, None, None), batch


def pad_sequences(sequences: Sequence[tuple[Ids, Ids]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """(prompt, response) -> input_ids [S, T], attention_mask [S, T], labels [S, T], what each position predicts."""
    S, T = len(sequences), max(len(prompt) + len(response) for prompt, response in sequences)
    input_ids, mask = torch.full((S, T), pad), torch.zeros(S, T, dtype=torch.long)
    labels = torch.full((S, T), IGNORE)
    for s, (prompt, response) in enumerate(sequences):
        n, whole = len(prompt), len(prompt) + len(response)
        input_ids[s, :whole] = torch.tensor([*prompt, *response])
        mask[s, :whole] = 1
        labels[s, n - 1 : whole - 1] = torch.tensor(list(response), dtype=torch.long)
    return input_ids, mask, labels


class _Row:
    """A packed row as it grows."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[int] = []
        self.parts: list[int] = []
        self.starts: list[int] = []
        self.prompt_end = -1

    def begin(self, prompt: Ids) -> None:
        self.starts.append(len(self.ids))
        self._add(prompt, 0, 0)
        self.prompt_end = len(self.ids) - 1

    def follow(self, response: Ids, start: int, part: int) -> list[int]:
        """-> the places in the row that predict the response's tokens; `start` is the length of its prompt."""
        first = len(self.ids)
        self._add(response, start, part)
        return [self.prompt_end, *range(first, first + len(response) - 1)][: len(response)]

    def _add(self, ids: Ids, start: int, part: int) -> None:
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.segments += [len(self.starts) - 1] * len(ids)
        self.parts += [part] * len(ids)

    def inputs(self) -> Inputs:
        ends = torch.tensor([*self.starts, len(self.ids)], dtype=torch.int32)
        parts = torch.tensor([self.segments, self.parts])
        ids, positions = torch.tensor(self.ids)[None], torch.tensor(self.positions)[None]
        return Inputs(ids, None, positions, parts, ends, int(ends.diff().max()))


def _packed(
    groups: Sequence[Group], anchors: Sequence[Group], weights: Tensor | None, shared: bool
) -> tuple[Inputs, Batch]:
    row, K = _Row(), len(groups[0].responses)
    places: dict[tuple[int, int], list[int]] = {}
    for g, (prompt, responses) in enumerate((*groups, *anchors)):
        for k, response in enumerate(responses):
            if k == 0 or not shared:
                row.begin(prompt)
            places[g, k] = row.follow(response, len(prompt), k + 1 if shared else 1)
    order = [(g, k) for k in range(K) for g in range(len(groups))]
    order += [(g, 0) for g in range(len(groups), len(groups) + len(anchors))]
    every = (*groups, *anchors)
    labels = [token for g, k in order for token in every[g].responses[k]]
    lengths = torch.tensor([0, *(len(places[key]) for key in order)])
    batch = from_packed(
        torch.tensor(labels, dtype=torch.long), lengths.cumsum(0), roles=K, anchors=len(anchors),
        anchor_weights=weights, rows=torch.tensor([at for key in order for at in places[key]], dtype=torch.long),
    )  # fmt: skip
    return row.inputs(), batch
