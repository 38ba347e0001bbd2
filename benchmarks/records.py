"""What one measured row is: a flat record, one JSON object a line; and Liger's CSV columns on request."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHES = ("head", "memory", "scaling", "accuracy", "products", "step", "packing")
STATES = ("timed", "missing", "wrong", "failed", "counted")
MODES = ("step", "frozen", "forward")  # all gradients, those of a frozen head, none
AXES = ("tokens", "vocabulary", "length")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a figure has to name."""

    device: str
    torch: str
    triton: str | None
    python: str
    commit: str
    date: str
    driver: str | None  # of the GPU
    threads: int
    platform: str


@dataclass(frozen=True, kw_only=True)
class Record(Environment):
    """A provider on a workload. None where a number was not measured or has no meaning."""

    command: str
    bench: str
    provider: str
    state: str
    reason: str = ""  # why it was not timed
    model: str | None = None
    D: int | None = None
    V: int | None = None
    softcap: float | None = None
    tokens: int | None = None  # of all sequences, prompts included
    scored: int | None = None
    pairs: int | None = None
    masked: float | None = None  # share that is prompt
    dtype: str | None = None
    kind: str | None = None
    entropy: float | None = None  # nats, the measured mean over the scored tokens
    nll: float | None = None  # nats, the measured mean
    mode: str | None = None
    workspace: int | None = None  # bytes; None: the library's default
    ms: float | None = None  # median
    low_ms: float | None = None  # first quartile
    high_ms: float | None = None  # third quartile
    products_ms: float | None = None  # the library's own products that the mode needs, in the same run
    ratio: float | None = None  # ms / products_ms
    tflops: float | None = None  # those products' operations, by ms
    peak_mib: float | None = None  # above inputs and gradients
    error: tuple[float, ...] | None = None  # relative, in norm, of loss, dh, dw (accuracy: nll, dh, dw, db)
    rounds: int | None = None
    axis: str | None = None  # what varies from record to record of this run: tokens, vocabulary, length
    slope: float | None = None  # of log(ms), or of log(peak_mib), against the log of what varies, over the whole run

    def __post_init__(self) -> None:
        for name, known in (("bench", BENCHES), ("state", STATES), ("mode", (*MODES, None)), ("axis", (*AXES, None))):
            if getattr(self, name) not in known:
                raise ValueError(f"Record: want {name} one of {known}, got {getattr(self, name)!r}")
        if (self.state == "timed") == bool(self.reason):
            raise ValueError(f"Record: want a reason unless timed, got {self.reason!r} for {self.state!r}")


FIELDS = tuple(field.name for field in dataclasses.fields(Record))


def command_of(name: str, arguments: Sequence[str] | None) -> str:
    """As one would type it: names may have spaces."""
    return shlex.join(["python", "-m", f"benchmarks.{name}", *(sys.argv[1:] if arguments is None else arguments)])


def as_dict(record: Record) -> dict[str, Any]:
    """As in a line of JSON."""
    made = dataclasses.asdict(record)
    return {**made, "error": None if record.error is None else list(record.error)}


def from_dict(given: Mapping[str, Any], where: str = "from_dict") -> Record:
    if given.keys() != set(FIELDS):
        unknown, absent = sorted(given.keys() - set(FIELDS)), sorted(set(FIELDS) - given.keys())
        raise ValueError(f"{where}: want exactly the fields of Record, got unknown {unknown}, without {absent}")
    return Record(**{**given, "error": None if given["error"] is None else tuple(given["error"])})


def append(path: Path, record: Record | Mapping[str, Any]) -> None:
    """A line of JSON; a Mapping is written as it stands, for results of another shape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(as_dict(record) if isinstance(record, Record) else record) + "\n")


def read(path: Path) -> list[Record]:
    """The records of a file that append wrote."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return [from_dict(json.loads(line), f"{path}, line {number}") for number, line in lines]


# a superset of the columns of Liger's benchmark/data/all_benchmark_data.csv

LIGER_COLUMNS = (
    "kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit", "x_name", "x_label",
    "x_value", "y_value_50", "y_value_20", "y_value_80", "extra_benchmark_config_str", "gpu_name", "timestamp",
    "liger_version",
)  # fmt: skip
LIGER_MODES = {"step": "full", "frozen": "full-frozen-head", "forward": "forward"}


def append_csv(path: Path, record: Record, seconds: Sequence[float], liger_version: str | None) -> None:
    """A row for the time (seconds of every round; none where it was not timed) and one for the peak, where known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [*LIGER_COLUMNS, *(name for name in FIELDS if name not in LIGER_COLUMNS)]
    with path.open("a+", encoding="utf-8", newline="") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        if header is not None and header != columns:
            raise ValueError(f"append_csv: want {path} to be empty or to have our columns, got {','.join(header)}")
        file.seek(0, os.SEEK_END)
        writer = csv.DictWriter(file, columns, restval="")
        if header is None:
            writer.writeheader()
        if seconds:
            at = [1e3 * percentile(seconds, share) for share in (0.5, 0.2, 0.8)]
            writer.writerow(_liger_row(record, "speed", "ms", at, liger_version))
        if record.peak_mib is not None:
            writer.writerow(_liger_row(record, "memory", "MB", [record.peak_mib] * 3, liger_version))


def percentile(values: Sequence[float], share: float) -> float:
    """Between neighbours by linear interpolation."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _liger_row(
    record: Record, metric: str, unit: str, at: Sequence[float], liger_version: str | None
) -> dict[str, Any]:
    config = {name: getattr(record, name) for name in ("D", "V", "dtype", "kind", "pairs", "masked", "workspace")}
    return {
        **as_dict(record), "kernel_name": "preference_loss_head", "kernel_provider": record.provider,
        "kernel_operation_mode": LIGER_MODES.get(record.mode or "", ""), "metric_name": metric, "metric_unit": unit,
        "x_name": "BT", "x_label": "B x T", "x_value": record.tokens, "y_value_50": at[0], "y_value_20": at[1],
        "y_value_80": at[2], "extra_benchmark_config_str": json.dumps(config), "gpu_name": record.device,
        "timestamp": record.date, "liger_version": liger_version or "",
    }  # fmt: skip
