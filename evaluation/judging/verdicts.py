"""Verdicts of a judge, one a judged order and line of a file, and what they say about each pair of responses.

Responses come in pairs: sample i of the file --a and sample i of the file --b for one prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from evaluation.files import append_rows, cut, torn_bytes

Order = Literal["ab", "ba"]
Winner = Literal["a", "b", "tie"]

# what --out of evaluation.winrate holds: in a folder a model, and above them
VERDICTS, ABOUT = "verdicts.jsonl", "about.json"
REPORT = ("report.md", "report.json", "report.png", "per_prompt.jsonl")

_SCORES = {"a": 1.0, "tie": 0.5, "b": 0.0}
_INTEGERS = ("sample", "prompt_tokens", "completion_tokens")


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


def read_about(path: Path) -> About:
    if not path.exists():
        raise ValueError(f"{path.parent}: want {ABOUT} beside {VERDICTS}, got none")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return About(**found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: want an object with what verdicts depend on, got: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge said about one pair in one order.

    order "ab" showed the response of --a first. verdict: after undoing the order, "a" is always the file --a; None
    where there is none. error: why no answer came (verdict is None then); None where one came, whether or not a
    verdict could be read from it. finish: how the answer ended, as the server says; None where it does not.
    """

    prompt_id: str
    sample: int = 0
    order: Order
    verdict: Winner | None
    raw: str = ""
    error: str | None = None
    judge: str = ""
    template: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_id", "raw", "judge", "template"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"Verdict: want {name} a string, got {getattr(self, name)!r}")
        for name in _INTEGERS:
            value = getattr(self, name)
            if value is None and name != "sample":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"Verdict: want {name} an integer >= 0, got {value!r}")
        if self.order not in get_args(Order):
            raise ValueError(f'Verdict: want order "ab" or "ba", got {self.order!r}')
        if self.verdict is not None and self.verdict not in get_args(Winner):
            raise ValueError(f'Verdict: want verdict "a", "b", "tie" or null, got {self.verdict!r}')
        if self.error is not None and (not isinstance(self.error, str) or self.verdict is not None):
            raise ValueError(f"Verdict: want error a string, without a verdict, got {self.error!r}, {self.verdict!r}")
        if self.finish is not None and not isinstance(self.finish, str):
            raise TypeError(f"Verdict: want finish a string, got {self.finish!r}")
        if self.cut and self.verdict is not None:
            raise ValueError(f"Verdict: want no verdict of an answer that was cut, got {self.verdict!r}")

    @property
    def key(self) -> tuple[str, int, str]:
        return self.prompt_id, self.sample, self.order

    @property
    def cut(self) -> bool:
        """At the limit of an answer's tokens: what its last line says is not where the judge would have ended."""
        return self.finish == "length"

    @property
    def first_place(self) -> bool | None:
        """Whether the response shown first was preferred; None for a tie or no verdict."""
        return None if self.verdict in (None, "tie") else self.verdict == self.order[0]


def read(path: Path) -> list[Verdict]:
    """Every verdict of a file, in its order."""
    found = []
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found.append(_from_json(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return found


def _from_json(record: Any) -> Verdict:
    if not isinstance(record, dict):
        raise ValueError(f"want an object, got {type(record).__name__}")
    known = {field.name for field in fields(Verdict)}
    missing, unknown = sorted({"prompt_id", "order", "verdict"} - record.keys()), sorted(record.keys() - known)
    if missing or unknown:
        raise ValueError(f"want the fields of a verdict, got missing {missing}, unknown {unknown}")
    return Verdict(**record)


def append(path: Path, verdicts: Iterable[Verdict]) -> None:
    append_rows(path, map(asdict, verdicts))


def drop_torn_line(path: Path) -> int:
    """-> bytes cut off, of a last line that is not whole. No file has none."""
    torn = torn_bytes(path.read_bytes()) if path.exists() else 0
    if torn:
        cut(path, torn)
    return torn


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One pair: score 1 where --a won, 0.5 tie, 0 --b won, None unscored.

    consistent: whether both orders agree, None without two verdicts. unparsable: answers without a verdict; cut: those
    of them that ran into the limit of tokens. failed: orders that got no answer. judged: verdicts; of those, ties;
    first_wins: those for the response shown first.
    """

    prompt_id: str
    sample: int
    score: float | None
    consistent: bool | None
    unparsable: int
    cut: int
    failed: int
    first_wins: int
    ties: int
    judged: int


def outcomes(verdicts: Sequence[Verdict]) -> list[Outcome]:
    """One outcome a pair, in the order in which pairs first come.

    Both orders: two equal verdicts score, two unequal ones are a tie and inconsistent, and a pair with an order
    without a verdict is unscored. One order: its verdict scores. An order that failed may come again, as after a
    resume, and then the later record counts; an answered order may not.
    """
    latest: dict[tuple[str, int, str], Verdict] = {}
    for verdict in verdicts:
        before = latest.get(verdict.key)
        if before is not None and before.error is None:
            raise ValueError(f"outcomes: want one answer for each prompt, sample and order, got two for {verdict.key}")
        latest[verdict.key] = verdict
    judges = sorted({(verdict.judge, verdict.template) for verdict in verdicts})
    if len(judges) > 1:
        raise ValueError(f"outcomes: want verdicts of one judge and template, got {judges}")
    pairs: dict[tuple[str, int], list[Verdict]] = {}
    for verdict in latest.values():
        pairs.setdefault((verdict.prompt_id, verdict.sample), []).append(verdict)
    single = [pair for pair, orders in pairs.items() if len(orders) == 1]
    if single and len(single) != len(pairs):
        raise ValueError(
            f"outcomes: want one order for every pair or both for every pair, got {len(single)} of {len(pairs)} with "
            f"one, {single[0]} the first: the judging is not finished"
        )
    return [_outcome(orders) for orders in pairs.values()]


def _outcome(orders: Sequence[Verdict]) -> Outcome:
    given = [verdict.verdict for verdict in orders if verdict.verdict is not None]
    consistent = given[0] == given[1] if len(given) == 2 else None
    score = None
    if len(given) == len(orders):
        score = 0.5 if consistent is False else _SCORES[given[0]]
    return Outcome(
        prompt_id=orders[0].prompt_id,
        sample=orders[0].sample,
        score=score,
        consistent=consistent,
        unparsable=sum(verdict.verdict is None and verdict.error is None for verdict in orders),
        cut=sum(verdict.cut for verdict in orders),
        failed=sum(verdict.error is not None for verdict in orders),
        first_wins=sum(verdict.first_place is True for verdict in orders),
        ties=given.count("tie"),
        judged=len(given),
    )
