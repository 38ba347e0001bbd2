"""What judging will take, before it starts: calls, tokens, money, time; and what it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.judging.verdicts import Verdict

_CHARACTERS = 4  # a token of English text, about
_ANSWER = 120  # tokens of an answer, as long as none has come


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Per million tokens; the currency is the user's."""

    prompt: float
    answer: float

    def __post_init__(self) -> None:
        for name in ("prompt", "answer"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"prices: want {name} >= 0 per million tokens, got {getattr(self, name)}")

    def of(self, prompt_tokens: float, answer_tokens: float) -> float:
        return (prompt_tokens * self.prompt + answer_tokens * self.answer) / 1e6


@dataclass(frozen=True, kw_only=True)
class Estimate:
    wanted: int  # judgements
    judged: int  # in the folder already
    cached: int
    characters: int  # of the messages that are left to ask
    answer_tokens: int  # of one answer, expected
    max_tokens: int  # and at most
    seconds: float  # of one answer, expected
    concurrency: int
    prices: Prices | None

    @property
    def left(self) -> int:
        return self.wanted - self.judged - self.cached

    def lines(self) -> list[str]:
        prompt = self.characters // _CHARACTERS
        answer, most = self.left * self.answer_tokens, self.left * self.max_tokens
        minutes = math.ceil(self.left / self.concurrency) * self.seconds / 60
        return [
            f"judgements: {self.wanted} wanted, {self.judged} judged already, {self.cached} in the cache, "
            f"{self.left} to ask for",
            f"tokens: about {prompt:,} of prompts ({_CHARACTERS} characters each) and {answer:,} of answers "
            f"({self.answer_tokens} an answer; {most:,} at most)",
            self._cost(prompt, answer, most),
            f"time: about {minutes:.1f} min, {self.concurrency} at once, {self.seconds:g} s an answer",
        ]

    def _cost(self, prompt: int, answer: int, most: int) -> str:
        if self.prices is None:
            return "cost: unknown without --price-prompt and --price-answer"
        return f"cost: about {self.prices.of(prompt, answer):.2f}, at most {self.prices.of(prompt, most):.2f}"


def usual_answer(judged: Sequence[Verdict]) -> int:
    """Tokens: the mean of answers that came, else a guess."""
    known = [verdict.completion_tokens for verdict in judged if verdict.completion_tokens is not None]
    return round(sum(known) / len(known)) if known else _ANSWER
