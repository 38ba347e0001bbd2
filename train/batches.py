"""Examples -> micro-batches: padded ids, and the Batch that the loss reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from expo_kernels.layout import from_padded, with_declared_weights
from expo_kernels.types import IGNORE, Batch
from train.stage import Stage


class Example(NamedTuple):
    """A group of responses to a prompt, or an anchor: one response, and its weight."""

    id: str
    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]  # K
    columns: dict[str, float]
    sequence_columns: Mapping[str, Sequence[float]]  # K numbers each
    reference: Tensor | None = None  # [K] log-probs
    other: Sequence[int] | None = None  # another prompt's response, for KTO's reference point
    other_reference: Tensor | None = None  # [1]
    anchor_weight: float | None = None  # None: no anchor


class Corpus(torch.utils.data.Dataset[Example]):
    """Tokenised examples, then anchors; with the reference's log-probs once they are known."""

    def __init__(self, groups: Dataset, stage: Stage, anchors: Dataset | None = None) -> None:
        self.groups, self.stage, self.anchors = groups, stage, anchors
        self.reference: Tensor | None = None  # [n, K], or [n, K + 1] with other prompts' responses

    def __len__(self) -> int:
        """Without the anchors: an epoch is a pass over the groups."""
        return len(self.groups)

    @property
    def roles(self) -> int:
        return len(self.groups[0]["responses"])

    def __getitem__(self, index: int) -> Example:
        if index >= len(self):
            assert self.anchors is not None, "the order names anchors only where there are some"
            row = self.anchors[index - len(self)]
            return Example(row["id"], row["prompt"], row["responses"], {}, {}, anchor_weight=row["weight"])
        row, K = self.groups[index], self.roles
        known = None if self.reference is None else self.reference[index]
        return Example(
            row["id"], row["prompt"], row["responses"],
            {name: row[name] for name in self.stage.columns},
            {name: row[name] for name in self.stage.sequence_columns},
            reference=None if known is None else known[:K],
            other=self.groups[self.mismatched(index)]["responses"][0] if self.stage.point == "mismatched" else None,
            other_reference=None if known is None or len(known) == K else known[K:],
        )  # fmt: skip

    def mismatched(self, index: int) -> int:
        """The next example with another prompt, or, where all prompts are one, the next."""
        n, own = len(self), self.groups[index]["prompt"]
        for step in range(1, min(n, 17)):
            if self.groups[(index + step) % n]["prompt"] != own:
                return (index + step) % n
        return (index + 1) % n


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """S sequences of T tokens, role by role, then anchors."""

    ids: tuple[str, ...]  # [P]
    input_ids: Tensor  # [S, T]
    attention_mask: Tensor  # [S, T]
    batch: Batch
    columns: dict[str, Tensor]
    reference: Tensor | None  # [S], anchors' are 0
    others: MicroBatch | None  # prompts with other prompts' responses
    tokens: int  # that the body reads, without padding

    def to(self, device: torch.device | str, non_blocking: bool = True) -> MicroBatch:
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MicroBatch:
        return self._map(lambda x: x.pin_memory())

    def _map(self, change: Callable[[Any], Any]) -> MicroBatch:
        return dataclasses.replace(
            self,
            input_ids=change(self.input_ids),
            attention_mask=change(self.attention_mask),
            batch=change(self.batch),
            columns={name: change(column) for name, column in self.columns.items()},
            reference=None if self.reference is None else change(self.reference),
            others=None if self.others is None else change(self.others),
        )


class Collator:
    """Examples of a micro-batch -> MicroBatch. Without any: one group of empty sequences, which counts for nothing."""

    def __init__(self, stage: Stage, roles: int, pad: int) -> None:
        self.stage, self.roles, self.pad = stage, roles, pad

    def __call__(self, examples: Sequence[Example]) -> MicroBatch:
        groups = [example for example in examples if example.anchor_weight is None] or [self._filler(examples)]
        anchors = [example for example in examples if example.anchor_weight is not None]
        sequences = [(e.prompt, e.responses[k]) for k in range(self.roles) for e in groups]
        sequences += [(e.prompt, e.responses[0]) for e in anchors]
        input_ids, mask, labels = pad_sequences(sequences, self.pad)
        weights = torch.tensor([e.anchor_weight for e in anchors]) if anchors else None
        batch = from_padded(labels, roles=self.roles, anchors=len(anchors), anchor_weights=weights)
        return MicroBatch(
            ids=tuple(e.id for e in groups),
            input_ids=input_ids,
            attention_mask=mask,
            batch=with_declared_weights(self.stage.objective, batch),
            columns=self._columns(groups),
            reference=_reference([e.reference for e in groups], len(anchors)),
            others=self._others(groups),
            tokens=sum(len(prompt) + len(response) for prompt, response in sequences) if examples else 0,
        )

    def _filler(self, examples: Sequence[Example]) -> Example:
        numbers = dict.fromkeys(self.stage.columns, 0.0)
        lists = {name: [0.0] * self.roles for name in self.stage.sequence_columns}
        known = torch.zeros(self.roles)
        return Example("", [self.pad], [[]] * self.roles, numbers, lists, known, [], torch.zeros(1))

    def _columns(self, groups: list[Example]) -> dict[str, Tensor]:
        columns = {name: torch.tensor([e.columns[name] for e in groups]) for name in self.stage.columns}
        for name in self.stage.sequence_columns:
            columns[name] = torch.tensor([e.sequence_columns[name] for e in groups]).T.flatten()  # [K * P]
        return columns

    def _others(self, groups: list[Example]) -> MicroBatch | None:
        if self.stage.point != "mismatched":
            return None
        sequences = [(e.prompt, e.other or []) for e in groups]
        input_ids, mask, labels = pad_sequences(sequences, self.pad)
        reference = _reference([e.other_reference for e in groups], 0)
        tokens = sum(len(e.prompt) + len(e.other or []) for e in groups if e.id)
        return MicroBatch((), input_ids, mask, from_padded(labels, roles=1), {}, reference, None, tokens)


def pad_sequences(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """(prompt, response) token ids -> input_ids [S, T], attention_mask [S, T], labels [S, T].

    labels[s, t] is what position t predicts: the response's tokens, and -100 elsewhere. Masks come from lengths, so the
    padding token may be any, the end of text as well.
    """
    T = max(len(prompt) + len(response) for prompt, response in sequences)
    S = len(sequences)
    input_ids, mask = torch.full((S, T), pad), torch.zeros(S, T, dtype=torch.long)
    labels = torch.full((S, T), IGNORE)
    for s, (prompt, response) in enumerate(sequences):
        n, whole = len(prompt), len(prompt) + len(response)
        input_ids[s, :whole] = torch.tensor([*prompt, *response])
        mask[s, :whole] = 1
        labels[s, n - 1 : whole - 1] = torch.tensor(list(response), dtype=torch.long)
    return input_ids, mask, labels


def _reference(known: list[Tensor | None], anchors: int) -> Tensor | None:
    """[K] each -> [S]."""
    found = [values for values in known if values is not None]
    if len(found) < len(known):
        return None
    return torch.cat([torch.stack(found, 1).flatten(), torch.zeros(anchors)])
