"""Judges what is not judged yet, many at once, into a folder that may be left at any time and gone on with."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from evaluation.files import only_writer, write_rows
from evaluation.inputs import checking
from evaluation.judging import verdicts
from evaluation.judging.cache import Cache, digest
from evaluation.judging.judge import Answer, Judge, JudgeSettings
from evaluation.judging.pairing import Call
from evaluation.judging.templates import Template, parse
from evaluation.judging.verdicts import ABOUT, VERDICTS, About, Verdict, Winner, read_about

_BATCH, _SECONDS = 64, 1.0  # verdicts wait for so many others or so long before they are written


@dataclass
class Tally:
    asked: int = 0
    cached: int = 0
    failed: int = 0
    unparsable: int = 0
    cut: int = 0  # of those, at the limit of tokens
    prompt_tokens: int = 0  # of what was asked, as the server counts
    answer_tokens: int = 0
    stopped: str = ""  # why not all that failed before were asked for again


class NoAnswersError(RuntimeError):
    """Too many failures in a row: the judge is gone, or refuses."""


@contextmanager
def opened(folder: Path, about: About) -> Iterator[list[Verdict]]:
    """-> the verdicts that are there; the folder is this process's alone until the end."""
    with ExitStack() as locks:
        with checking():
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(only_writer(folder))
            _check(folder, about)
            file = folder / VERDICTS
            verdicts.drop_torn_line(file)  # its answer is in the cache or asked for again
            there = verdicts.read(file) if file.exists() else []
        yield there


def _check(folder: Path, about: About) -> None:
    place, wanted = folder / ABOUT, asdict(about)
    if not (folder / VERDICTS).exists():
        write_rows(place, [wanted])
        return
    found = asdict(read_about(place))
    for name, value in wanted.items():
        if found[name] != value:
            raise ValueError(
                f"{folder}: want verdicts with {name} {value}, got a folder with {name} {found[name]}; take another "
                "--out, what is in the cache is not asked for again"
            )


class Unanswered(NamedTuple):
    new: list[Call]
    failed: list[Call]  # those that failed before, the ones that did so least often first
    heard: bool  # whether any call was answered

    @property
    def all(self) -> list[Call]:
        return self.new + self.failed


def unanswered(calls: Sequence[Call], judged: Sequence[Verdict]) -> Unanswered:
    answered = {verdict.key for verdict in judged if verdict.error is None}
    failures = Counter(verdict.key for verdict in judged if verdict.error is not None)
    left = [call for call in calls if call.key not in answered]
    failed = sorted((call for call in left if call.key in failures), key=lambda call: failures[call.key])
    return Unanswered([call for call in left if call.key not in failures], failed, bool(answered))


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


def judge_all(work: Work, left: Unanswered, api_key: str | None) -> Tally:
    """Every call into the folder's verdicts. Ctrl-C and SIGTERM raise asyncio.CancelledError, all answers written."""
    return asyncio.run(_judge_all(work, left, api_key))


async def _judge_all(work: Work, left: Unanswered, api_key: str | None) -> Tally:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "asyncio.run has made a task"
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    async with Judge(work.settings, api_key) as judge:
        with tqdm(total=len(left.all), unit="verdict", disable=None) as bar:
            return await _Run(work, judge, bar, left.heard).all(left)


class _Run:
    def __init__(self, work: Work, judge: Judge, bar: Any, heard: bool) -> None:
        self._work, self._judge, self._bar = work, judge, bar
        self._heard = heard  # an answer to any call
        self._tally = Tally()
        self._pending: list[Verdict] = []
        self._written = time.monotonic()
        self._in_a_row = 0  # failures that count
        self._taken = 0  # calls
        self._stopping = False

    async def all(self, left: Unanswered) -> Tally:
        try:
            await self._calls(left.new)
            try:
                await self._calls(left.failed)
            except NoAnswersError as error:
                # each of these has its failure on the disk: nothing is missing from a report
                self._tally.stopped = str(error)
                self._tally.failed += len(left.all) - self._taken
        finally:
            self._write()
        return self._tally

    async def _calls(self, calls: Sequence[Call]) -> None:
        self._stopping, self._in_a_row = False, 0
        waiting = iter(calls)
        workers = [
            asyncio.create_task(self._worker(waiting)) for _ in range(min(self._work.settings.concurrency, len(calls)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            await self._end(workers)

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
            self._heard = True
            return kept
        answer = await self._judge.ask(call.message(self._work.template))
        self._tally.asked += 1
        self._tally.prompt_tokens += answer.prompt_tokens or 0
        self._tally.answer_tokens += answer.completion_tokens or 0
        if answer.error is not None:
            # a refusal is of that message alone where another one was answered, else of all: a wrong setting
            self._in_a_row += not (answer.refused and self._heard)
            return answer
        self._in_a_row, self._heard = 0, True
        return self._work.cache.put(key, answer)

    def _take(self, call: Call, answer: Answer) -> None:
        made = _verdict(call, answer, self._work)
        self._tally.failed += made.error is not None
        self._tally.unparsable += made.error is None and made.verdict is None
        self._tally.cut += made.cut
        self._taken += 1
        self._pending.append(made)
        self._bar.update()
        if len(self._pending) >= _BATCH or time.monotonic() - self._written > _SECONDS:
            self._write()
        if self._in_a_row >= self._work.stop_after:
            raise NoAnswersError(f"{self._in_a_row} judgements in a row without an answer, the last: {answer.error}")

    def _write(self) -> None:
        pending, self._pending = self._pending, []
        if pending:
            verdicts.append(self._work.folder / VERDICTS, pending)
        self._written = time.monotonic()


def _verdict(call: Call, answer: Answer, work: Work) -> Verdict:
    place = None if answer.error is not None or answer.cut else parse(answer.text)
    shown: tuple[Winner, Winner] = ("a", "b") if call.order == "ab" else ("b", "a")
    meant: dict[str | None, Winner | None] = {"first": shown[0], "second": shown[1], "tie": "tie", None: None}
    return Verdict(
        prompt_id=call.pair.prompt_id, sample=call.pair.sample, order=call.order, verdict=meant[place], raw=answer.text,
        error=answer.error, judge=work.settings.model, template=work.template.identity,
        prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens, finish=answer.finish,
    )  # fmt: skip
