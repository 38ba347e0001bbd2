"""A results file: what the benches of one run on one device wrote, under a name of its date and device."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from benchmarks import records
from benchmarks.ceilings import Ceiling
from benchmarks.records import Environment, Record

FOLDER = Path(__file__).parent.parent / "results"
NAME = re.compile(r"(\d{4}-\d{2}-\d{2})-([a-z0-9.-]+)\.json")
SAVE = re.compile(r" --save(?: [^-]\S*)?")
ENVIRONMENT = tuple(field.name for field in dataclasses.fields(Environment))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step(Environment):
    """What bench_step says of a provider."""

    command: str
    model: str
    vocabulary: int
    dtype: str
    pairs: int
    longest: int
    rounds: int
    provider: str
    state: str
    reason: str
    tokens_per_second: float | None
    low: float | None
    high: float | None
    ratio_compiled: float | None  # of speeds; above 1 is faster than the rival
    ratio_trl: float | None
    extra_peak_mib: float | None
    standing_mib: float | None
    mode: ClassVar[str] = "whole step"


class Results(NamedTuple):
    path: Path
    date: str
    device: str  # a slug
    environment: Mapping[str, Any]
    commands: tuple[str, ...]
    records: tuple[Record, ...]
    steps: tuple[Step, ...]
    ceilings: tuple[Ceiling, ...]

    def of(self, bench: str) -> list[Record]:
        return [record for record in self.records if record.bench == bench]


def device_slug(environment: Mapping[str, Any]) -> str:
    """A device class: what may be compared with what. `environment` is a results file's."""
    parts = [environment["device"]]
    if environment["simd"] is not None:  # a processor: its share of the machine and its instructions decide
        parts += [f"{environment['threads']} threads", environment["simd"]]
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-")


def with_simd(environment: Mapping[str, Any]) -> dict[str, Any]:
    """A record's environment and, on a CPU, its vector instructions: one name may stand for machines with and
    without those that multiply bf16."""
    simd = None if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {**{name: environment[name] for name in ENVIRONMENT}, "simd": simd}


def write(folder: Path, environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """-> the file of that date and device, with every row as its bench wrote it but for where it was saved."""
    if not rows:
        raise ValueError("write: want at least one record, got none")
    cleaned = [{**row, "command": SAVE.sub("", row["command"])} for row in rows]
    commands = list(dict.fromkeys(row["command"] for row in cleaned))
    head = json.dumps({"environment": environment, "commands": commands}, indent=1)
    lines = ",\n".join(json.dumps(row) for row in cleaned)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{environment['date']}-{device_slug(environment)}.json"
    path.write_text(f'{head[:-2]},\n "records": [\n{lines}\n]}}\n', encoding="utf-8")
    return path


def read(path: Path) -> Results:
    name = NAME.fullmatch(path.name)
    if name is None:
        raise ValueError(f"{path}: want a name of date and device such as 2026-01-31-amd-epyc-2-threads-avx2.json")
    text = json.loads(path.read_text(encoding="utf-8"))
    if text.keys() != {"environment", "commands", "records"}:
        raise ValueError(f"{path}: want environment, commands and records, got {', '.join(text)}")
    parsed = [_row(row, f"{path}, record {i}") for i, row in enumerate(text["records"], 1)]
    return Results(
        path, name[1], name[2], text["environment"], tuple(text["commands"]),
        tuple(row for row in parsed if isinstance(row, Record)), tuple(row for row in parsed if isinstance(row, Step)),
        tuple(row for row in parsed if isinstance(row, Ceiling)),
    )  # fmt: skip


def newest(folder: Path = FOLDER) -> list[Results]:
    """Of each device the newest file, by the devices' names."""
    found = {results.device: results for results in map(read, sorted(folder.glob("*.json")))}
    return [found[device] for device in sorted(found)]


def _row(row: Mapping[str, Any], where: str) -> Record | Step | Ceiling:
    if row.get("bench") == "ceilings":
        return Ceiling(**_fields(Ceiling, row, where))
    if "tokens_per_second" in row:
        return Step(**_fields(Step, row, where))
    return records.from_dict(row, where)


def _fields(kind: type[Step] | type[Ceiling], row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those that the report reads; bench_step writes more."""
    names = [field.name for field in dataclasses.fields(kind)]
    if absent := [name for name in names if name not in row]:
        raise ValueError(f"{where}: want the fields of {kind.__name__}, got a record without {', '.join(absent)}")
    return {name: row[name] for name in names}
