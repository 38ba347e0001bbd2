"""What outcomes say about a model: shares over prompts with Wilson and bootstrap intervals.

The unit is the prompt: its k samples are averaged first, and every n here is a number of prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.judging.verdicts import Outcome
from evaluation.reporting.intervals import Interval, bootstrap, wilson
from evaluation.reporting.length_control import LengthControlled, length_controlled

Lengths = Mapping[tuple[str, int], tuple[int, int]]  # (prompt_id, sample) -> characters of the responses of --a, --b
COUNTS = ("judged", "unparsable", "cut", "failed")  # of verdicts: of an Outcome, of a prompt, of all


@dataclass(frozen=True, kw_only=True)
class Share:
    """A mean over n prompts of a number in [0, 1]; None where n is 0.

    wilson takes value * n for successes in n trials. With one sample a prompt and outcomes of 0 or 1 that is exact;
    ties at a half and means over samples vary less than such trials do, and the interval is wider than needed.
    bootstrap: percentiles over resampled prompts; None below two prompts. Where all prompts agree it has no width.
    """

    value: float | None
    n: int
    wilson: Interval | None
    bootstrap: Interval | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One model against the baseline.

    win, tie and loss add up to 1, inconsistent pairs being ties; win_rate counts a tie as half a win. consistency: of
    pairs with both verdicts, those that agree. first_place: of verdicts that are no tie, those for the response shown
    first; 0.5 without position bias. All are means over prompts. length_controlled is None where no lengths were given,
    and mean_lengths then too. The counts below are of pairs (inconsistent, scored) and of verdicts (the rest).
    """

    win: Share
    tie: Share
    loss: Share
    win_rate: Share
    consistency: Share
    first_place: Share
    length_controlled: LengthControlled | None
    mean_lengths: tuple[float, float] | None
    prompts: int
    pairs: int
    scored: int
    inconsistent: int
    orders: int
    judged: int
    ties: int
    first_wins: int
    unparsable: int
    cut: int
    failed: int
    level: float
    draws: int
    length_draws: int
    seed: int


def share(values: Sequence[float], *, seed: int, draws: int = 10_000, level: float = 0.95) -> Share:
    """values [n], one a prompt, each in [0, 1]; n may be 0."""
    n = len(values)
    if n == 0:
        return Share(value=None, n=0, wilson=None, bootstrap=None)
    total = math.fsum(values)
    spread = bootstrap(values, seed=seed, draws=draws, level=level) if n > 1 else None
    return Share(value=total / n, n=n, wilson=wilson(total, n, level), bootstrap=spread)


def by_prompt(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The samples of each prompt, prompts in the order in which they first come."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.prompt_id, []).append(outcome)
    return found


@dataclass(frozen=True, kw_only=True)
class PromptShares:
    """What a prompt adds to the shares: means over its samples, None where it adds nothing; and its counts."""

    prompt_id: str
    score: float | None
    win: float | None
    tie: float | None
    loss: float | None
    consistent: float | None
    first_place: float | None
    samples: int
    scored: int
    judged: int
    unparsable: int
    cut: int
    failed: int


def of_prompts(outcomes: Iterable[Outcome]) -> list[PromptShares]:
    return [_of_prompt(prompt_id, samples) for prompt_id, samples in by_prompt(outcomes).items()]


def _of_prompt(prompt_id: str, samples: Sequence[Outcome]) -> PromptShares:
    scores = [outcome.score for outcome in samples if outcome.score is not None]
    decided = sum(outcome.judged - outcome.ties for outcome in samples)
    return PromptShares(
        prompt_id=prompt_id,
        score=_mean(scores),
        win=_mean([float(score == 1.0) for score in scores]),
        tie=_mean([float(score == 0.5) for score in scores]),
        loss=_mean([float(score == 0.0) for score in scores]),
        consistent=_mean([float(outcome.consistent) for outcome in samples if outcome.consistent is not None]),
        first_place=sum(outcome.first_wins for outcome in samples) / decided if decided else None,
        samples=len(samples),
        scored=len(scores),
        **{name: sum(getattr(outcome, name) for outcome in samples) for name in COUNTS},
    )


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def summarise(
    outcomes: Sequence[Outcome], lengths: Lengths | None = None, *, seed: int = 0, level: float = 0.95,
    draws: int = 10_000, length_draws: int = 1_000,
) -> Summary:  # fmt: skip
    """Outcomes of one model against the baseline -> Summary. lengths holds every scored pair."""
    seen = {(outcome.prompt_id, outcome.sample) for outcome in outcomes}
    if len(seen) != len(outcomes):
        raise ValueError(f"summarise: want one outcome a pair, got {len(outcomes)} of {len(seen)} pairs")
    prompts = of_prompts(outcomes)
    scored = [outcome for outcome in outcomes if outcome.score is not None]

    def over_prompts(name: str) -> Share:
        values = [getattr(prompt, name) for prompt in prompts]
        return share([value for value in values if value is not None], seed=seed, draws=draws, level=level)

    return Summary(
        win=over_prompts("win"),
        tie=over_prompts("tie"),
        loss=over_prompts("loss"),
        win_rate=over_prompts("score"),
        consistency=over_prompts("consistent"),
        first_place=over_prompts("first_place"),
        length_controlled=None if lengths is None else _controlled(scored, lengths, seed, level, length_draws),
        mean_lengths=None if lengths is None else _mean_lengths(scored, lengths),
        prompts=len(prompts),
        pairs=len(outcomes),
        scored=len(scored),
        inconsistent=sum(outcome.consistent is False for outcome in outcomes),
        orders=max((o.judged + o.unparsable + o.failed for o in outcomes), default=0),
        ties=sum(outcome.ties for outcome in outcomes),
        first_wins=sum(outcome.first_wins for outcome in outcomes),
        level=level,
        draws=draws,
        length_draws=length_draws,
        seed=seed,
        **{name: sum(getattr(outcome, name) for outcome in outcomes) for name in COUNTS},
    )


def _pair_lengths(scored: Sequence[Outcome], lengths: Lengths) -> NDArray[np.float64]:
    """-> [R, 2]"""
    absent = [(o.prompt_id, o.sample) for o in scored if (o.prompt_id, o.sample) not in lengths]
    if absent:
        raise ValueError(f"summarise: want lengths of every scored pair, got none for {len(absent)}, {absent[0]} first")
    return np.array([lengths[o.prompt_id, o.sample] for o in scored], dtype=np.float64).reshape(-1, 2)


def _controlled(scored: Sequence[Outcome], lengths: Lengths, seed: int, level: float, draws: int) -> LengthControlled:
    measured = _pair_lengths(scored, lengths)
    return length_controlled(
        np.array([outcome.score for outcome in scored], dtype=np.float64),
        measured[:, 0] - measured[:, 1],
        [outcome.prompt_id for outcome in scored],
        seed=seed,
        draws=draws,
        level=level,
    )


def _mean_lengths(scored: Sequence[Outcome], lengths: Lengths) -> tuple[float, float] | None:
    """Of scored pairs, over prompts."""
    if not scored:
        return None
    prompts = [_pair_lengths(samples, lengths).mean(0) for samples in by_prompt(scored).values()]
    of_a, of_b = np.mean(prompts, axis=0)
    return float(of_a), float(of_b)
