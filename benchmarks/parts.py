"""A check is a list of parts, each a command under a limit of its own, all under one budget of time.

A part that fails or outlasts its limit is shown with its last lines and the next one goes on; one that cannot run here
is shown as missing, with the reason; one that the budget has no time for, as not reached.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import records
from benchmarks.records import Record

ROOT = Path(__file__).parent.parent
LEAST = 3.0  # seconds; with less left of the budget nothing is begun
GRACE = 5.0  # seconds between asking a part to end and ending it
Row = Mapping[str, Any]
TAIL = 12  # lines shown of a part that failed
PASSED, FAILED, TIMED_OUT, MISSING, NOT_REACHED = "passed", "failed", "timed out", "missing", "not reached"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command, or why there is none."""

    name: str
    item: int  # of the list that it belongs to
    command: tuple[str, ...] = ()
    seconds: float = 60.0  # its limit
    missing: str = ""  # why it cannot run here
    environment: Mapping[str, str] = field(default_factory=dict)
    save: Path | None = None  # lines of JSON that it appends
    owes: tuple[Record, ...] = ()  # what stands in the results for what it should have measured and did not

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.missing):
            raise ValueError(f"Part {self.name!r}: want a command or a reason why it is missing, got both or neither")


class Outcome(NamedTuple):
    part: Part
    state: str
    seconds: float
    reason: str  # empty where it passed
    output: str

    @property
    def broken(self) -> bool:
        return self.state in (FAILED, TIMED_OUT, NOT_REACHED)


def python(*arguments: object) -> tuple[str, ...]:
    """The command of this interpreter, whichever it is: no environment of the project's own is asked for."""
    return (sys.executable, *map(str, arguments))


def shown(command: tuple[str, ...]) -> str:
    """As one would type it elsewhere: without the folders of this machine."""
    words = ["python3" if word == sys.executable else word for word in command]
    if "--save" in words:
        del words[words.index("--save") : words.index("--save") + 2]
    return shlex.join(words)


def not_installed(*modules: str) -> str:
    """-> which of the modules cannot be imported, in words, or nothing."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def run(
    parts: Iterable[Part], *, budget: float, logs: Path, after: Callable[[Sequence[Outcome]], object] = len
) -> list[Outcome]:
    """In order, each once; budget in seconds. What a part prints goes to a file under logs, and is shown when it ends.
    `after` is called after each with all so far, so that an end of another kind loses no results."""
    logs.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget
    outcomes: list[Outcome] = []
    for i, part in enumerate(parts):
        left = end - time.monotonic()
        if part.missing:
            outcome = Outcome(part, MISSING, 0.0, part.missing, "")
        elif left < LEAST:
            outcome = Outcome(part, NOT_REACHED, 0.0, f"the budget of {budget:.0f} s was spent", "")
        else:
            print(f"--- {part.name}: {shown(part.command)}", flush=True)
            outcome = _run(part, left, logs / f"{i:02d}-{_slug(part.name)}.log")
        outcomes.append(outcome)
        _show(outcome)
        after(outcomes)
    return outcomes


def _run(part: Part, left: float, log: Path) -> Outcome:
    limit, began = min(part.seconds, left), time.monotonic()
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                part.command, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1", **part.environment}, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Outcome(part, FAILED, 0.0, f"could not be started: {error}", "")
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds, output = time.monotonic() - began, log.read_text(errors="replace")
    if code is None:
        what = f"its limit of {limit:.0f} s" if limit == part.seconds else f"the {limit:.0f} s left of the budget"
        return Outcome(part, TIMED_OUT, seconds, f"outlasted {what}", output)
    if code:
        return Outcome(part, FAILED, seconds, f"exit code {code}: {last_line(output)}", output)
    return Outcome(part, PASSED, seconds, "", output)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it has started, which is in a group of its own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _show(outcome: Outcome) -> None:
    """All that a passed part printed, the end of another's."""
    lines = outcome.output.rstrip().splitlines()
    for line in lines if outcome.state == PASSED else lines[-TAIL:]:
        print(f"    {line}")
    reason = f": {outcome.reason}" if outcome.reason else ""
    print(f"--- {outcome.part.name}: {outcome.state} after {outcome.seconds:.0f} s{reason}\n", flush=True)


def summary(outcomes: Sequence[Outcome]) -> str:
    width = max((len(outcome.part.name) for outcome in outcomes), default=4)
    lines = [f"item  {'part':<{width}}  {'state':<11} {'s':>5}  why"]
    for part, state, seconds, reason, _ in outcomes:
        lines.append(f"{part.item:>4}  {part.name:<{width}}  {state:<11} {seconds:>5.0f}  {reason}".rstrip())
    states = [outcome.state for outcome in outcomes]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    total = sum(outcome.seconds for outcome in outcomes)
    return "\n".join([*lines, f"{len(outcomes)} parts in {total:.0f} s: {counts}"])


# what they measured


def environment() -> dict[str, Any]:
    """measure.environment, with what the report adds, by another process: this one must not hold memory of the GPU."""
    code = (
        "import json; from benchmarks import measure; from benchmarks.report import results; "
        "print(json.dumps(results.with_simd(measure.environment())))"
    )
    done = subprocess.run(python("-c", code), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"no environment: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def made_by(outcome: Outcome) -> list[Row]:
    """What the part wrote, and what stands for what it owes."""
    save = outcome.part.save
    rows = [] if save is None or not save.exists() else list(_read(save))
    there = {_what(row) for row in rows}
    reason = outcome.reason or "it passed, and measured nothing"
    owed = [records.as_dict(dataclasses.replace(one, reason=reason)) for one in outcome.part.owes]
    return [*rows, *(row for row in owed if _what(row) not in there)]


def _what(row: Row) -> tuple[object, ...]:
    return tuple(row.get(name) for name in ("bench", "model", "mode", "tokens"))


def _read(file: Path) -> Iterator[Row]:
    """A part that was ended in the middle of a line leaves half of it."""
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            print(f"{file}: half a line was left out")
