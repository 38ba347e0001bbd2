"""Records put in order: those of one workload, those of one sweep, and who is who among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.providers import PROVIDERS
from benchmarks.records import Record

NAIVE, COMPILED, SCORED, TRL, LIGER = "naive", "torch.compile", "torch.compile-scored", "trl", "liger-preference"
PRODUCTS_OF = {"step": 3, "frozen": 2, "forward": 1}
AXIS = {"tokens": "N", "vocabulary": "V", "length": "T"}


class Case(NamedTuple):
    """A workload of the head."""

    dtype: str | None
    model: str | None
    D: int | None
    V: int | None
    softcap: float | None
    tokens: int | None
    pairs: int | None
    masked: float | None
    kind: str | None
    workspace: int | None

    def without_mask(self) -> Case:
        return self._replace(masked=0.0)

    @property
    def size(self) -> int:
        return (self.tokens or 0) * (self.D or 0) * (self.V or 0)


class Sweep(NamedTuple):
    """Records of one command that differ in provider and along an axis."""

    bench: str
    axis: str
    mode: str
    dtype: str
    records: list[Record]

    @property
    def providers(self) -> list[str]:
        return list(dict.fromkeys(record.provider for record in self.records))

    @property
    def timed(self) -> list[Record]:
        return [record for record in self.records if record.state == "timed"]

    def of(self, provider: str) -> list[Record]:
        """Along the axis."""
        return sorted((record for record in self.timed if record.provider == provider), key=position)


def is_ours(provider: str) -> bool:
    return provider in PROVIDERS and PROVIDERS[provider].ours


def case_of(record: Record) -> Case:
    return Case(*(getattr(record, name) for name in Case._fields))


def cases(records: Iterable[Record]) -> dict[Case, list[Record]]:
    found: dict[Case, list[Record]] = {}
    for record in records:
        found.setdefault(case_of(record), []).append(record)
    return found


def timed(records: Iterable[Record], *, mode: str | None = None, provider: str | None = None) -> list[Record]:
    return [
        record
        for record in records
        if record.state == "timed" and mode in (None, record.mode) and provider in (None, record.provider)
    ]


def the(records: Iterable[Record], provider: str, mode: str) -> Record | None:
    """The last one that was timed, where a run was made twice."""
    return next(reversed(timed(records, mode=mode, provider=provider)), None)


def largest(found: dict[Case, list[Record]], dtype: str) -> Case | None:
    """The workload of a dtype with most work among those without a mask."""
    own = [case for case in found if case.dtype == dtype and not case.masked]
    return max(own, key=lambda case: case.size, default=None)


def sweeps(records: Iterable[Record]) -> list[Sweep]:
    found: dict[tuple[str, str, str, str, str], list[Record]] = {}
    for record in records:
        if record.axis is not None:
            key = (record.command, record.bench, record.axis, str(record.mode), str(record.dtype))
            found.setdefault(key, []).append(record)
    return [Sweep(bench, axis, mode, dtype, own) for (_, bench, axis, mode, dtype), own in found.items()]


def position(record: Record) -> int:
    """Where a record of a sweep stands on its axis."""
    if record.axis == "vocabulary":
        place = record.V
    elif record.axis == "length":
        place = None if record.tokens is None or record.pairs is None else record.tokens // (2 * record.pairs)
    else:
        place = record.scored
    if place is None:
        raise ValueError(f"position: want a place on the axis {record.axis}, got none in {record}")
    return place
