"""Responses of two files -> pairs of the same prompt, and the orders in which a judge is to see each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evaluation.judging.templates import Template, transcript
from evaluation.judging.verdicts import Order
from evaluation.responses import Response

ORDERS = ("both", "random")


class Pair(NamedTuple):
    prompt_id: str
    sample: int
    prompt: str
    a: str
    b: str


class Call(NamedTuple):
    """One judgement."""

    pair: Pair
    order: Order

    @property
    def shown(self) -> tuple[str, str]:
        """The responses, first and second."""
        return (self.pair.a, self.pair.b) if self.order == "ab" else (self.pair.b, self.pair.a)

    def message(self, template: Template) -> str:
        return template.fill(self.pair.prompt, *self.shown)

    @property
    def key(self) -> tuple[str, int, str]:
        return self.pair.prompt_id, self.pair.sample, self.order


@dataclass(frozen=True)
class Matched:
    pairs: list[Pair]
    unmatched: dict[str, int]  # cause: responses

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.pairs).encode()).hexdigest()

    @property
    def lengths(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Characters of both responses of each pair."""
        return {(pair.prompt_id, pair.sample): (len(pair.a), len(pair.b)) for pair in self.pairs}


def match(a: Sequence[Response], b: Sequence[Response]) -> Matched:
    """Sample by sample; a file with one sample of a prompt has it compared with each of the other file's."""
    of_a, of_b = _by_prompt(a), _by_prompt(b)
    pairs, alone_a, alone_b = [], 0, 0
    for prompt_id, samples_a in of_a.items():
        samples_b = of_b.get(prompt_id)
        if samples_b is None:
            continue
        for sample in _samples(samples_a, samples_b):
            one, other = _of(samples_a, sample), _of(samples_b, sample)
            alone_a, alone_b = alone_a + (other is None), alone_b + (one is None)
            if one is not None and other is not None:
                pairs.append(_pair(sample, one, other))
    causes = {
        "of --a, prompt not in --b": _without(of_a, of_b),
        "of --b, prompt not in --a": _without(of_b, of_a),
        "of --a, sample not in --b": alone_a,
        "of --b, sample not in --a": alone_b,
    }
    if not pairs:
        raise ValueError(f"want prompts that both files of responses have, got none: {causes}")
    return Matched(pairs, {cause: count for cause, count in causes.items() if count})


def calls(pairs: Sequence[Pair], orders: str, seed: int) -> list[Call]:
    """both: two of every pair; random: one, drawn from the seed and the pair, whatever else is judged."""
    if orders not in ORDERS:
        raise ValueError(f"want orders one of {', '.join(ORDERS)}, got {orders}")
    both: tuple[Order, Order] = ("ab", "ba")
    if orders == "both":
        return [Call(pair, order) for pair in pairs for order in both]
    return [Call(pair, both[_bit(seed, pair)]) for pair in pairs]


def _bit(seed: int, pair: Pair) -> int:
    drawn = hashlib.sha256(json.dumps([seed, pair.prompt_id, pair.sample]).encode()).digest()
    return drawn[0] & 1


def _by_prompt(responses: Sequence[Response]) -> dict[str, dict[int, Response]]:
    found: dict[str, dict[int, Response]] = {}
    for response in responses:
        found.setdefault(response.prompt_id, {})[response.sample] = response
    return found


def _samples(a: dict[int, Response], b: dict[int, Response]) -> list[int]:
    if len(a) == 1 or len(b) == 1:
        return sorted(a if len(b) == 1 else b)
    return sorted(a.keys() | b.keys())


def _of(samples: dict[int, Response], sample: int) -> Response | None:
    return next(iter(samples.values())) if len(samples) == 1 else samples.get(sample)


def _pair(sample: int, a: Response, b: Response) -> Pair:
    where = f"prompt {a.prompt_id}"
    if a.prompt != b.prompt:
        raise ValueError(f"{where}: want the same prompt in both files, got {a.prompt!r} and {b.prompt!r}")
    try:
        pair = Pair(a.prompt_id, sample, transcript(a.prompt), a.response, b.response)
        "".join((pair.prompt_id, pair.prompt, pair.a, pair.b)).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: want text that UTF-8 can hold, got a lone surrogate: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return pair


def _without(own: dict[str, dict[int, Response]], other: dict[str, dict[int, Response]]) -> int:
    return sum(len(samples) for prompt_id, samples in own.items() if prompt_id not in other)
