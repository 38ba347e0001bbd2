"""The win rate at equal length: a logistic regression of outcomes on the difference in length.

Judges prefer long answers. The regression is of the outcome on an intercept and tanh(delta / std(delta)), where delta
is the length of --a's response less that of --b's, and the length-controlled win rate is its prediction at delta = 0.

alpaca_eval's (arXiv 2404.04475) has the same feature and the same prediction, and more around them: a term for the
difficulty of each instruction, fitted beforehand on many models for its own 805 instructions, two gamed copies of the
baseline as a regulariser, an L1 penalty chosen by cross-validation, and the sample's standard deviation. Here it is
one comparison on any prompts: two parameters, no penalty, the population's standard deviation. The two agree in what
they correct for and not in their digits; for the leaderboard's number run alpaca_eval on what alpaca.py exports.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from evaluation.reporting.intervals import Interval

Floats = NDArray[np.float64]

_LEFT = 1e-10  # of the likelihood's two equations, each a mean
_STEPS = 20
_BLOCK = 2**19  # weights drawn at a time
_EQUAL = "the difference in length is the same for every pair, so its effect cannot be told from the intercept"
_SEPARATED = "a difference in length tells wins from losses without error, so the regression diverges"


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """The win rate predicted at equal length, from n prompts; None with a reason where the regression has no solution.

    slope: what tanh(delta / std) = 1 adds to the log odds of a win. interval: percentiles over resampled prompts, each
    resample standardised and fitted anew. Of `draws` resamples, `diverged` have no solution; each may stand for any
    number, so it counts as 0 for the lower end and as 1 for the upper.
    """

    value: float | None
    slope: float | None
    interval: Interval | None
    n: int
    draws: int
    diverged: int
    reason: str = ""


class Fit(NamedTuple):
    intercept: float
    slope: float


def length_controlled(
    scores: Floats, deltas: Floats, prompts: Sequence[str], *, seed: int, draws: int = 1_000, level: float = 0.95
) -> LengthControlled:
    """scores [R] of 1, 0.5 or 0, deltas [R], prompts [R]; the rows of a prompt share its weight of 1."""
    if not scores.shape == deltas.shape == (len(prompts),):
        raise ValueError(
            f"length_controlled: want scores, deltas, prompts [R], got {scores.shape}, {deltas.shape}, {len(prompts)}"
        )
    if scores.size and (scores.min() < 0 or scores.max() > 1 or not np.isfinite(deltas).all()):
        raise ValueError("length_controlled: want scores in [0, 1] and finite deltas")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"length_controlled: want draws >= 1 and level in (0, 1), got {draws!r}, {level!r}")
    distinct, owner, rows = np.unique(np.asarray(prompts, dtype=str), return_inverse=True, return_counts=True)
    n, weights = distinct.size, 1 / rows[owner]
    feature = _feature(deltas, weights[None])[0] if n else deltas
    reason = _without_solution(scores, feature)
    fit = None if reason else _regression(scores, feature, weights)
    if fit is None:
        reason = reason or "the regression did not converge"
        return LengthControlled(value=None, slope=None, interval=None, n=n, draws=0, diverged=0, reason=reason)
    generator, block = np.random.default_rng(seed), max(1, _BLOCK // scores.size)
    predicted: list[float] = []
    for start in range(0, draws, block):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(block, draws - start))
        predicted += _predictions(scores, deltas, weights * counts[:, owner], fit)
    diverged = draws - len(predicted)
    interval = Interval(
        float(np.quantile([0.0] * diverged + predicted, (1 - level) / 2)),
        float(np.quantile(predicted + [1.0] * diverged, (1 + level) / 2)),
    )
    return LengthControlled(
        value=float(expit(fit.intercept)), slope=fit.slope, interval=interval, n=n, draws=draws, diverged=diverged
    )


def _feature(deltas: Floats, weights: Floats) -> Floats:
    """deltas [R], weights [B, R] -> [B, R]; where all that is drawn has one delta, of no scale."""
    mean = np.average(np.broadcast_to(deltas, weights.shape), axis=1, weights=weights)
    spread = np.sqrt(np.average((deltas - mean[:, None]) ** 2, axis=1, weights=weights))
    return np.tanh(deltas / np.where(spread > 0, spread, 1.0)[:, None])


def _without_solution(scores: Floats, feature: Floats) -> str:
    """[R] -> why the likelihood has no maximum, or "". It has one where wins and losses overlap in the feature."""
    if not scores.size:
        return "no pair is scored"
    won, lost = feature[scores > 0], feature[scores < 1]
    if not won.size or not lost.size:
        return f"every scored pair was {'won' if won.size else 'lost'}, so the regression diverges"
    if np.ptp(feature) == 0:
        return _EQUAL
    return _SEPARATED if won.min() >= lost.max() or won.max() <= lost.min() else ""


def _regression(scores: Floats, feature: Floats, weights: Floats) -> Fit | None:
    """[R] -> the maximum of the weighted likelihood, or None without convergence. A tie is half a win, half a loss."""
    won, lost = scores > 0, scores < 1
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1_000)
    with warnings.catch_warnings():
        # the solver also warns where it starts at the maximum, as for ties alone: the equations decide instead
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        model.fit(
            np.concatenate([feature[won], feature[lost]])[:, None],
            np.repeat([1, 0], [won.sum(), lost.sum()]),
            np.concatenate([(weights * scores)[won], (weights * (1 - scores))[lost]]),
        )
    fit = Fit(float(model.intercept_[0]), float(model.coef_[0, 0]))
    left = weights * (scores - expit(fit.intercept + fit.slope * feature)) / weights.sum()
    return fit if max(abs(left.sum()), abs((left * feature).sum())) <= _LEFT else None


def _predictions(scores: Floats, deltas: Floats, weights: Floats, start: Fit) -> list[float]:
    """weights [B, R], 0 for what is not drawn -> the rates of those resamples that have a solution.

    Newton's steps for all at once, since a regression by scikit-learn costs milliseconds for its checks; what they
    leave is left to it. The likelihood is concave, so whatever solves its equations is the maximum.
    """
    feature = _feature(deltas, weights)
    found = _overlap(scores, feature, weights > 0)
    feature, weights = feature[found], weights[found]
    weights = weights / weights.sum(1, keepdims=True)
    intercept, slope = np.full(len(weights), start.intercept), np.full(len(weights), start.slope)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for _ in range(_STEPS):
            p = expit(intercept[:, None] + slope[:, None] * feature)
            left, bend = weights * (scores - p), weights * p * (1 - p)
            g0, g1 = left.sum(1), (left * feature).sum(1)
            unsolved = ~(np.maximum(abs(g0), abs(g1)) <= _LEFT)  # NaN is unsolved
            if not unsolved.any():
                break
            h0, h1, h2 = bend.sum(1), (bend * feature).sum(1), (bend * feature**2).sum(1)
            determinant = h0 * h2 - h1 * h1
            intercept = np.where(unsolved, intercept + (h2 * g0 - h1 * g1) / determinant, intercept)
            slope = np.where(unsolved, slope + (h0 * g1 - h1 * g0) / determinant, slope)
    for row in np.flatnonzero(unsolved):
        drawn = weights[row] > 0
        fit = _regression(scores[drawn], feature[row, drawn], weights[row, drawn])
        intercept[row] = np.nan if fit is None else fit.intercept
    return [float(expit(value)) for value in intercept if not np.isnan(value)]


def _overlap(scores: Floats, feature: Floats, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[R], [B, R], [B, R] -> [B] whether _without_solution is "" for what is drawn."""
    won, lost = drawn & (scores > 0), drawn & (scores < 1)
    lowest = [np.where(part, feature, np.inf).min(1) for part in (won, lost)]
    highest = [np.where(part, feature, -np.inf).max(1) for part in (won, lost)]
    return (lowest[0] < highest[1]) & (lowest[1] < highest[0])
