"""What the parts measured -> benchmarks/results, in the files that the report reads and, beside them, how they went.

DATE-DEVICE.json                 records, whole steps and ceilings; what other commands left there stays
DATE-DEVICE-COMMAND.jsonl        every part: its command, state, seconds, and why
DATE-DEVICE-tuning.jsonl         every candidate tile and its time, or what was wrong with it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts import Outcome, Row, made_by, shown
from benchmarks.report import results

TUNING = "tuning"


def keep(name: str, outcomes: Sequence[Outcome], facts: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes what there is so far; -> the files. name: the command's, in a word."""
    start = f"{facts['date']}-{results.device_slug(facts)}"
    report, beside = folder / f"{start}.json", [folder / f"{start}-{name}.jsonl"]
    rows = [row for outcome in outcomes for row in made_by(outcome)]
    tuned = [row for row in rows if row.get("bench") == TUNING]
    measured = [row for row in rows if row.get("bench") != TUNING]
    _lines(beside[0], [{**facts, **_story(outcome)} for outcome in outcomes])
    if tuned:
        beside.append(folder / f"{start}-{TUNING}.jsonl")
        _lines(beside[1], tuned)
    if measured:
        again = {results.SAVE.sub("", row["command"]) for row in measured}
        kept = [row for row in _known(report) if row["command"] not in again]
        beside.append(results.write(folder, facts, [*kept, *measured]))
    return beside


def _known(report: Path) -> list[Row]:
    return json.loads(report.read_text(encoding="utf-8"))["records"] if report.exists() else []


def _story(outcome: Outcome) -> dict[str, Any]:
    part, state, seconds, reason, _ = outcome
    return {
        "item": part.item, "part": part.name, "command": shown(part.command), "state": state,
        "seconds": round(seconds, 1), "reason": reason,
    }  # fmt: skip


def _lines(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
