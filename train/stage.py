"""What an objective asks of the data and of the trainer: pairs or lists, which numbers, whether a reference."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from expo_kernels.objectives import KTO
from expo_kernels.types import Objective


class Stage(NamedTuple):
    name: str  # of train/data: sft, preference, unpaired, lists
    objective: Objective  # as the loss uses it
    columns: tuple[str, ...]  # what the data must have, a number a group
    sequence_columns: tuple[str, ...]  # and a number a response
    point: str | None  # where KTO's reference point comes from: "mismatched", "batch", or None

    @property
    def reference(self) -> bool:
        return self.objective.needs.reference

    @property
    def anchors(self) -> bool:
        return self.objective.needs.anchor_scale is not None


def stage_of(objective: Objective) -> Stage:
    """KTO's reference point is a mean over the step's micro-batches and ranks, so the trainer makes it a column."""
    point = None
    if isinstance(objective, KTO) and objective.reference_point != "column":
        point = objective.reference_point
        objective = replace(objective, reference_point="column")
    needs = objective.needs
    if needs.whole_batch or needs.forward_only:
        raise ValueError(
            f"train: {type(objective).__name__} couples the groups of a batch, which this trainer cannot split"
        )
    made = ("reference_point",) if point else ()
    columns = tuple(name for name in needs.columns if name not in made)
    return Stage(_name(needs.roles, columns), objective, columns, needs.sequence_columns, point)


def _name(roles: int | None, columns: tuple[str, ...]) -> str:
    if roles == 1:
        return "unpaired" if "desirable" in columns else "sft"
    return "preference" if roles == 2 else "lists"
