"""Tokenised examples in a folder that is complete or absent: written under another name, renamed, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets.arrow_writer import ArrowWriter

from train.data.report import Report
from train.data.schemas import Wanted

_TABLE, _ABOUT = "examples.arrow", "about.json"


@dataclass(frozen=True)
class Prepared:
    dataset: datasets.Dataset  # id, prompt, responses, columns
    report: Report
    fingerprint: str  # of the examples themselves, the same on any machine
    roles: int  # K


class Example(NamedTuple):
    id: str
    prompt: list[int]
    responses: list[list[int]]  # K
    columns: dict[str, float]
    sequence_columns: dict[str, list[float]]  # K numbers each


def find(place: Path) -> Prepared | None:
    if not place.exists():
        return None
    about = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
    rows = datasets.Dataset.from_file(str(place / _TABLE))
    return Prepared(rows, Report.from_json(about["report"]), about["fingerprint"], about["roles"])


def save(place: Path, examples: Iterable[Example], wanted: Wanted, report: Report) -> None:
    """report: filled while the examples are drawn. Of several processes that save the same, the first one's stays."""
    hidden = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    hidden.mkdir()
    try:
        fingerprint, roles = _write(hidden / _TABLE, examples, wanted)
        if not report.kept:
            causes = "; ".join(f"{count} dropped: {cause}" for cause, count in report.dropped.items())
            raise ValueError(f"prepare: want at least one example, got none ({causes})")
        about = {"fingerprint": fingerprint, "roles": roles, "report": report.to_json()}
        (hidden / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        try:
            hidden.rename(place)
        except OSError:
            if not place.exists():
                raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _write(table: Path, examples: Iterable[Example], wanted: Wanted) -> tuple[str, int]:
    """-> fingerprint, roles (0 without an example)."""
    digest, roles = hashlib.sha256(), 0
    with ArrowWriter(path=str(table), features=_features(wanted)) as writer:
        for example in examples:
            roles = roles or len(example.responses)
            if len(example.responses) != roles:
                raise ValueError(
                    f"{example.id}: want as many responses in every row, {roles}, got {len(example.responses)}"
                )
            digest.update(json.dumps(example, sort_keys=True).encode() + b"\n")
            writer.write(
                {"id": example.id, "prompt": example.prompt, "responses": example.responses}
                | example.columns | example.sequence_columns
            )  # fmt: skip
        writer.finalize()
    return digest.hexdigest(), roles


def _features(wanted: Wanted) -> datasets.Features:
    ids, number = datasets.List(datasets.Value("int32")), datasets.Value("float64")
    return datasets.Features(
        {"id": datasets.Value("string"), "prompt": ids, "responses": datasets.List(ids)}
        | dict.fromkeys(wanted.all_columns, number)
        | {name: datasets.List(number) for name in wanted.sequence_columns}
    )
