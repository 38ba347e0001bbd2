"""Diversity of the k responses to one prompt, from their texts: self-BLEU, distinct-n at a fixed number of tokens."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from random import Random
from typing import TypeVar

from sacrebleu.metrics.bleu import BLEU

ORDERS = (1, 2, 3)  # of distinct-n
DRAWS = 8  # of a prompt's budget of tokens, over which distinct-n is taken

T = TypeVar("T", bound=Hashable)


def self_bleu(responses: Sequence[str], tokenize: str = "13a") -> float:
    """Mean over responses of the sentence BLEU (orders to 4, 0..1) against all the others as references.

    1: all are the same; a response that shares no word with another counts 0. tokenize: sacrebleu's name.
    """
    if len(responses) < 2:
        raise ValueError(f"self_bleu: want at least 2 responses of a prompt, got {len(responses)}")
    bleu = BLEU(tokenize=tokenize, effective_order=True)
    scores = [bleu.sentence_score(one, [*responses[:i], *responses[i + 1 :]]).score for i, one in enumerate(responses)]
    return math.fsum(scores) / len(scores) / 100


def distinct(
    responses: Sequence[Sequence[Hashable]], budget: int, *, seed: str, draws: int = DRAWS
) -> tuple[float, ...]:
    """distinct-1, -2, -3: different n-grams over all n-grams of `budget` tokens, drawn `draws` times.

    The numbers of all draws are added before they are divided; NaN where no response that was drawn has n tokens.
    """
    where = "distinct"
    available = sum(map(len, responses))
    if not 1 <= budget <= available:
        raise ValueError(f"{where}: want a budget of 1 to the prompt's {available} tokens, got {budget}")
    if draws < 1:
        raise ValueError(f"{where}: want at least 1 draw, got {draws}")
    random = Random(seed)
    different, every = [0] * len(ORDERS), [0] * len(ORDERS)
    for _ in range(draws):
        drawn = draw(responses, budget, random)
        for at, n in enumerate(ORDERS):
            grams = [gram for tokens in drawn for gram in _ngrams(tokens, n)]
            different[at] += len(set(grams))
            every[at] += len(grams)
    return tuple(d / e if e else math.nan for d, e in zip(different, every, strict=True))


def draw(responses: Sequence[Sequence[T]], budget: int, random: Random) -> list[Sequence[T]]:
    """Exactly `budget` tokens: whole responses in a random order, and of the last one a window at a random place.

    Not the first tokens: openings are more alike than what follows them.
    """
    drawn: list[Sequence[T]] = []
    for at in random.sample(range(len(responses)), len(responses)):
        tokens = responses[at]
        if len(tokens) > budget:
            start = random.randint(0, len(tokens) - budget)
            tokens = tokens[start : start + budget]
        budget -= len(tokens)
        drawn.append(tokens)
        if not budget:
            break
    return drawn


def _ngrams(tokens: Sequence[T], n: int) -> Iterator[tuple[T, ...]]:
    """Within one response: none crosses its end."""
    return zip(*(tokens[i:] for i in range(n)), strict=False)
