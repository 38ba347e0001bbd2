"""Examples -> micro-batches: what the body reads, the Batch that the loss reads, and the numbers beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from expo_kernels.layout import with_declared_weights
from expo_kernels.types import Batch
from train.layouts import Group, Inputs, Layout
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

    def lengths(self, shared_prompts: bool) -> list[int]:
        """Tokens of each group in a packed row, KTO's other sequence not among them."""
        table = self.groups.select_columns(["prompt", "responses"]).with_format("arrow")
        found = []
        for rows in table.iter(batch_size=1000):
            for prompt, responses in zip(rows["prompt"].to_pylist(), rows["responses"].to_pylist(), strict=True):
                prompts = 1 if shared_prompts else len(responses)
                found.append(prompts * len(prompt) + sum(map(len, responses)))
        return found

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        rows = self.groups.select_columns(["prompt", "responses"])
        groups = max(len(row["prompt"]) + max(map(len, row["responses"])) for row in rows)
        return max(groups, self.longest_anchor)

    @property
    def longest_anchor(self) -> int:
        return max((len(row["prompt"]) + len(row["responses"][0]) for row in self.anchors or ()), default=0)

    def mismatched(self, index: int) -> int:
        """The next example with another prompt, or, where all prompts are one, the next."""
        n, own = len(self), self.groups[index]["prompt"]
        for step in range(1, min(n, 17)):
            if self.groups[(index + step) % n]["prompt"] != own:
                return (index + step) % n
        return (index + 1) % n


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """S sequences, role by role, then anchors."""

    ids: tuple[str, ...]  # [P]
    inputs: Inputs
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
            inputs=self.inputs.map(change),
            batch=change(self.batch),
            columns={name: change(column) for name, column in self.columns.items()},
            reference=None if self.reference is None else change(self.reference),
            others=None if self.others is None else change(self.others),
        )


class Collator:
    """Examples of a micro-batch -> MicroBatch. Without any: one group of empty sequences, which counts for nothing."""

    def __init__(self, stage: Stage, roles: int, layout: Layout) -> None:
        self.stage, self.roles, self.layout = stage, roles, layout

    def __call__(self, examples: Sequence[Example]) -> MicroBatch:
        groups = [example for example in examples if example.anchor_weight is None] or [self._filler()]
        anchors = [example for example in examples if example.anchor_weight is not None]
        weights = torch.tensor([e.anchor_weight for e in anchors]) if anchors else None
        inputs, batch = self.layout(_sequences(groups), _sequences(anchors), weights)
        return MicroBatch(
            ids=tuple(e.id for e in groups),
            inputs=inputs,
            batch=with_declared_weights(self.stage.objective, batch),
            columns=self._columns(groups),
            reference=_reference([e.reference for e in groups], len(anchors)),
            others=self._others(groups),
            tokens=_tokens(inputs) if examples else 0,
        )

    def _filler(self) -> Example:
        numbers = dict.fromkeys(self.stage.columns, 0.0)
        lists = {name: [0.0] * self.roles for name in self.stage.sequence_columns}
        known = torch.zeros(self.roles)
        return Example("", [self.layout.pad], [[]] * self.roles, numbers, lists, known, [], torch.zeros(1))

    def _columns(self, groups: list[Example]) -> dict[str, Tensor]:
        columns = {name: torch.tensor([e.columns[name] for e in groups]) for name in self.stage.columns}
        for name in self.stage.sequence_columns:
            columns[name] = torch.tensor([e.sequence_columns[name] for e in groups]).T.flatten()  # [K * P]
        return columns

    def _others(self, groups: list[Example]) -> MicroBatch | None:
        if self.stage.point != "mismatched":
            return None
        inputs, batch = self.layout([Group(e.prompt, [e.other or []]) for e in groups])
        reference = _reference([e.other_reference for e in groups], 0)
        return MicroBatch((), inputs, batch, {}, reference, None, _tokens(inputs) if groups[0].id else 0)


def _sequences(examples: Sequence[Example]) -> list[Group]:
    return [Group(e.prompt, e.responses) for e in examples]


def _tokens(inputs: Inputs) -> int:
    return inputs.input_ids.numel() if inputs.attention_mask is None else int(inputs.attention_mask.sum())


def _reference(known: list[Tensor | None], anchors: int) -> Tensor | None:
    """[K] each -> [S]."""
    found = [values for values in known if values is not None]
    if len(found) < len(known):
        return None
    return torch.cat([torch.stack(found, 1).flatten(), torch.zeros(anchors)])
