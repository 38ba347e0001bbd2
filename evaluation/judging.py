"""Judges what is not judged yet, many at once, into a folder that may be left at any time and gone on with."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from evaluation import verdicts
from evaluation.cache import Cache, digest
from evaluation.judge import Answer, Judge, JudgeSettings
from evaluation.pairing import Call
from evaluation.responses import write_rows
from evaluation.templates import Template, parse
from evaluation.verdicts import Choice, Verdict

VERDICTS, _ABOUT = "verdicts.jsonl", "about.json"
_BATCH, _SECONDS = 64, 1.0  # verdicts wait for so many others or so long before they are written


@dataclass(frozen=True, kw_only=True)
class About:
    """What the verdicts of a folder depend on."""

    judge: str
    url: str
    sampling: dict[str, float | int]
    template: str
    orders: str
    seed: int | None  # of random orders
    pairs: str  # digest


@dataclass
class Tally:
    asked: int = 0
    cached: int = 0
    failed: int = 0
    unparsable: int = 0
    prompt_tokens: int = 0  # of what was asked, as the server counts
    answer_tokens: int = 0


class NoAnswersError(RuntimeError):
    """Too many failures in a row: the judge is gone, or refuses."""


@contextmanager
def opened(folder: Path, about: About) -> Iterator[list[Verdict]]:
    """-> the verdicts that are there; the folder is this process's alone until the end."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: want a folder that no other process is writing, got one that is") from None
    try:
        _check(folder, about)
        file = folder / VERDICTS
        verdicts.drop_torn_line(file)  # its answer is in the cache or asked for again
        yield verdicts.read(file) if file.exists() else []
    finally:
        lock.release()


def _check(folder: Path, about: About) -> None:
    place, wanted = folder / _ABOUT, asdict(about)
    if not (folder / VERDICTS).exists():
        write_rows(place, [wanted])
        return
    if not place.exists():
        raise ValueError(f"{folder}: want {_ABOUT} beside {VERDICTS}, got none")
    try:
        found: Any = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{place}: want JSON, got: {error}") from error
    for name, value in wanted.items():
        got = found.get(name) if isinstance(found, dict) else None
        if got != value:
            raise ValueError(
                f"{folder}: want verdicts with {name} {value}, got a folder with {name} {got}; take another --out, "
                f"what is in the cache is not asked for again"
            )


def unanswered(calls: Sequence[Call], judged: Sequence[Verdict]) -> list[Call]:
    """Those without an answer; one that failed before is asked again."""
    answered = {verdict.key for verdict in judged if verdict.error is None}
    return [call for call in calls if call.key not in answered]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the judgements of a folder are made with."""

    folder: Path
    settings: JudgeSettings
    template: Template
    cache: Cache
    stop_after: int  # failures in a row

    def key(self, call: Call) -> str:
        return digest(self.settings, self.template, call.pair.prompt, *call.shown)


def judge_all(work: Work, calls: Sequence[Call], api_key: str | None) -> Tally:
    """Every call into the folder's verdicts. Ctrl-C and SIGTERM raise asyncio.CancelledError, all answers written."""
    return asyncio.run(_judge_all(work, calls, api_key))


async def _judge_all(work: Work, calls: Sequence[Call], api_key: str | None) -> Tally:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "asyncio.run has made a task"
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    async with Judge(work.settings, api_key) as judge:
        with tqdm(total=len(calls), unit="verdict", disable=None) as bar:
            return await _Run(work, judge, bar).all(calls)


class _Run:
    def __init__(self, work: Work, judge: Judge, bar: Any) -> None:
        self._work, self._judge, self._bar = work, judge, bar
        self._tally = Tally()
        self._pending: list[Verdict] = []
        self._written = time.monotonic()
        self._in_a_row = 0  # failures
        self._stopping = False

    async def all(self, calls: Sequence[Call]) -> Tally:
        waiting = iter(calls)
        count = min(self._work.settings.concurrency, len(calls))
        workers = [asyncio.create_task(self._worker(waiting)) for _ in range(count)]
        try:
            try:
                await asyncio.gather(*workers)
            finally:
                await self._end(workers)
        finally:
            self._write()
        return self._tally

    async def _end(self, workers: Sequence[asyncio.Task[None]]) -> None:
        self._stopping = True
        left = {worker for worker in workers if not worker.done()}
        while left:
            for worker in left:
                worker.cancel()
            # more than once: before Python 3.12 wait_for forgets a cancellation that comes together with its result
            _, left = await asyncio.wait(left, timeout=1.0)

    async def _worker(self, waiting: Iterator[Call]) -> None:
        for call in waiting:
            await asyncio.sleep(0)  # signals are heard also where everything is in the cache
            self._take(call, await self._answer(call))
            if self._stopping:
                return

    async def _answer(self, call: Call) -> Answer:
        key = self._work.key(call)
        kept = self._work.cache.get(key)
        if kept is not None:
            self._tally.cached += 1
            return kept
        answer = await self._judge.ask(call.message(self._work.template))
        self._tally.asked += 1
        self._tally.prompt_tokens += answer.prompt_tokens or 0
        self._tally.answer_tokens += answer.completion_tokens or 0
        if answer.error is not None:
            self._in_a_row += 1
            return answer
        self._in_a_row = 0
        return self._work.cache.put(key, answer)

    def _take(self, call: Call, answer: Answer) -> None:
        made = _verdict(call, answer, self._work)
        self._tally.failed += made.error is not None
        self._tally.unparsable += made.error is None and made.verdict is None
        self._pending.append(made)
        self._bar.update()
        if len(self._pending) >= _BATCH or time.monotonic() - self._written > _SECONDS:
            self._write()
        if self._in_a_row >= self._work.stop_after:
            raise NoAnswersError(f"{self._in_a_row} judgements in a row without an answer, the last: {answer.error}")

    def _write(self) -> None:
        pending, self._pending = self._pending, []
        file = self._work.folder / VERDICTS
        try:
            if pending:
                verdicts.append(file, pending)
        except OSError:
            verdicts.drop_torn_line(file)  # else the next line would go on from it
            raise
        self._written = time.monotonic()


def _verdict(call: Call, answer: Answer, work: Work) -> Verdict:
    place = None if answer.error is not None else parse(answer.text)
    shown: tuple[Choice, Choice] = ("a", "b") if call.order == "ab" else ("b", "a")
    meant: dict[str | None, Choice | None] = {"first": shown[0], "second": shown[1], "tie": "tie", None: None}
    return Verdict(
        prompt_id=call.pair.prompt_id, sample=call.pair.sample, order=call.order, verdict=meant[place], raw=answer.text,
        error=answer.error, judge=work.settings.model, template=work.template.identity,
        prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens,
    )  # fmt: skip
