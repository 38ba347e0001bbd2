"""Outcomes from verdicts, Wilson and bootstrap intervals, length control: against scipy and values by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from evaluation.judging import verdicts
from evaluation.judging.verdicts import Order, Outcome, Verdict, Winner, outcomes
from evaluation.reporting import length_control
from evaluation.reporting.intervals import Interval, bootstrap, wilson
from evaluation.reporting.length_control import LengthControlled, length_controlled
from evaluation.reporting.statistics import Summary, summarise

Z = 1.959963984540054  # the 97.5 % point of a normal


def verdict(prompt: str, order: Order, said: Winner | None, sample: int = 0, error: str | None = None) -> Verdict:
    return Verdict(prompt_id=prompt, sample=sample, order=order, verdict=said, error=error)


def both(prompt: str, ab: Winner | None, ba: Winner | None, sample: int = 0) -> list[Verdict]:
    return [verdict(prompt, "ab", ab, sample), verdict(prompt, "ba", ba, sample)]


def scored(*scores: float, samples: int = 1) -> list[Outcome]:
    """Consistent outcomes, `samples` in a row for each prompt."""
    choices: dict[float, Winner] = {1.0: "a", 0.5: "tie", 0.0: "b"}
    return outcomes(
        [
            one
            for i, score in enumerate(scores)
            for one in both(f"p{i // samples}", choices[score], choices[score], i % samples)
        ]
    )


# verdicts


@pytest.mark.parametrize(
    ("ab", "ba", "score", "consistent", "first_wins", "ties"),
    [
        ("a", "a", 1.0, True, 1, 0),
        ("b", "b", 0.0, True, 1, 0),
        ("tie", "tie", 0.5, True, 0, 2),
        ("a", "b", 0.5, False, 2, 0),
        ("b", "a", 0.5, False, 0, 0),
        ("a", "tie", 0.5, False, 1, 1),
        ("tie", "a", 0.5, False, 0, 1),
    ],
)
def test_two_orders_make_one_outcome(
    ab: Winner, ba: Winner, score: float, consistent: bool, first_wins: int, ties: int
) -> None:
    (made,) = outcomes(both("p", ab, ba))
    assert made == Outcome(
        prompt_id="p", sample=0, score=score, consistent=consistent, unparsable=0, cut=0, failed=0,
        first_wins=first_wins, ties=ties, judged=2,
    )  # fmt: skip


@pytest.mark.parametrize(("said", "score"), [("a", 1.0), ("tie", 0.5), ("b", 0.0), (None, None)])
def test_one_order_scores_by_itself_and_says_nothing_of_consistency(said: Winner | None, score: float | None) -> None:
    (made,) = outcomes([verdict("p", "ba", said)])
    assert (made.score, made.consistent, made.unparsable) == (score, None, int(said is None))


def test_a_pair_with_an_unparsable_or_failed_order_is_unscored_and_counted_by_cause() -> None:
    unparsable, failed = outcomes(
        [*both("p", "a", None), verdict("q", "ab", None, error="timeout"), verdict("q", "ba", "b")]
    )
    assert (unparsable.score, unparsable.unparsable, unparsable.failed, unparsable.judged) == (None, 1, 0, 1)
    assert (failed.score, failed.unparsable, failed.failed, failed.judged) == (None, 0, 1, 1)


def test_an_answer_after_a_failure_counts_and_a_second_answer_is_refused() -> None:
    failure = verdict("p", "ab", None, error="503")
    (made,) = outcomes([failure, failure, *both("p", "a", "a")])
    assert (made.score, made.failed) == (1.0, 0)
    with pytest.raises(ValueError, match=r"got two for \('p', 0, 'ab'\)"):
        outcomes([*both("p", "a", "a"), verdict("p", "ab", "a")])
    with pytest.raises(ValueError, match="got two"):
        outcomes([verdict("p", "ab", None), verdict("p", "ab", "a")])


def test_an_unfinished_judging_and_two_judges_in_one_file_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1 of 2 with one, \('q', 0\) the first"):
        outcomes([*both("p", "a", "a"), verdict("q", "ab", "a")])
    one, two = both("p", "a", "a")
    with pytest.raises(ValueError, match="one judge and template"):
        outcomes([one, dataclasses.replace(two, judge="another")])


def test_verdicts_come_back_from_a_file_and_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    written = [*both("p", "a", None), verdict("ü\u2028\n", "ab", None, sample=3, error="line\nbreak")]
    verdicts.append(path, written[:1])
    verdicts.append(path, written[1:])
    assert verdicts.read(path) == written
    for bad, why in (
        ('{"prompt_id": "p", "order": "aa", "verdict": "a"}', 'want order "ab" or "ba"'),
        ('{"prompt_id": "p", "order": "ab"}', r"missing \['verdict'\]"),
        ('{"prompt_id": "p", "order": "ab", "verdict": "A"}', "want verdict"),
        ('{"prompt_id": "p", "order": "ab", "verdict": "a", "error": "x"}', "want error"),
        ('{"prompt_id": "p", "order": "ab", "verdict": "a", "sample": true}', "want sample an integer"),
        ('{"prompt_id": 1, "order": "ab", "verdict": "a"}', "want prompt_id a string"),
        ('{"prompt_id": "p", "order": "ab", "verdict": null, "finish": 3}', "want finish a string"),
        ("[]", "want an object"),
        ("", "Expecting value"),
    ):
        path.write_text(json.dumps(dataclasses.asdict(written[0])) + "\n" + bad + "\n")
        with pytest.raises(ValueError, match=rf"verdicts.jsonl, line 2: .*{why}"):
            verdicts.read(path)


def test_a_torn_last_line_is_cut_off_and_a_whole_one_without_its_end_is_not(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    verdicts.append(path, both("p", "a", "a"))
    path.write_bytes(path.read_bytes()[:-1])
    assert verdicts.drop_torn_line(path) == 0 == verdicts.drop_torn_line(tmp_path / "absent.jsonl")
    verdicts.append(path, both("q", "a", "a"))
    assert verdicts.read(path) == [*both("p", "a", "a"), *both("q", "a", "a")]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="line 4: "):
        verdicts.read(path)
    assert verdicts.drop_torn_line(path) > 0
    assert verdicts.read(path) == [*both("p", "a", "a"), *both("q", "a", "a")[:1]]


def test_an_answer_that_was_cut_has_no_verdict_and_is_counted_twice() -> None:
    cut = Verdict(prompt_id="p", order="ba", verdict=None, raw="It may be\nVerdict: A", finish="length")
    (made,) = outcomes([verdict("p", "ab", "a"), cut])
    assert (made.score, made.unparsable, made.cut, made.judged) == (None, 1, 1, 1)
    assert (summarise([made]).unparsable, summarise([made]).cut) == (1, 1)
    with pytest.raises(ValueError, match="want no verdict of an answer that was cut, got 'a'"):
        dataclasses.replace(cut, verdict="a")


# intervals


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("wins", "n"), [(0, 1), (1, 1), (0, 10), (5, 10), (10, 10), (81, 263), (402, 805), (1, 9_999)])
def test_wilson_is_scipys(wins: int, n: int, level: float) -> None:
    want = stats.binomtest(wins, n).proportion_ci(level, method="wilson")
    assert wilson(wins, n, level) == pytest.approx((want.low, want.high), abs=1e-12)


def test_wilson_by_hand_with_ties_as_halves() -> None:
    """The ends are the shares p at which (mean - p)^2 = z^2 p (1 - p) / n; of n wins in n, n / (n + z^2) and 1."""
    for p in wilson(2.5, 10):
        assert (0.25 - p) ** 2 == pytest.approx(Z**2 * p * (1 - p) / 10, abs=1e-12)
    assert wilson(7, 7) == pytest.approx((7 / (7 + Z**2), 1.0), abs=1e-12)
    assert wilson(0, 7) == pytest.approx((0.0, Z**2 / (7 + Z**2)), abs=1e-12)
    for bad in ((1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)):
        with pytest.raises(ValueError, match="wilson: want"):
            wilson(*bad)


def test_the_bootstrap_of_two_values_is_the_one_by_hand() -> None:
    """Means 0, 1/2, 1 come with 1/4, 1/2, 1/4."""
    assert bootstrap([0.0, 1.0], seed=1, level=0.95) == (0.0, 1.0)
    assert bootstrap([0.0, 1.0], seed=1, level=0.4) == (0.5, 0.5)
    assert bootstrap([0.5, 0.5, 0.5], seed=1) == (0.5, 0.5)


def test_the_bootstrap_of_outcomes_has_the_binomials_percentiles() -> None:
    """Resampling 30 wins of 100 is Binomial(100, 0.3); at 20,000 draws the ends move by one step at most."""
    made = bootstrap([1.0] * 30 + [0.0] * 70, seed=3, draws=20_000)
    exact = stats.binom.ppf([0.025, 0.975], 100, 0.3) / 100
    assert made == pytest.approx(exact, abs=0.01 + 1e-9)


def test_the_bootstrap_is_scipys_percentile_method_up_to_the_draws() -> None:
    values = np.random.default_rng(0).choice([0.0, 0.25, 0.5, 1.0], size=200)
    want = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    made = bootstrap(values, seed=2, draws=20_000)
    assert made == pytest.approx(tuple(want.confidence_interval), abs=0.005)
    assert made.high - made.low > 0.08


def test_the_bootstrap_depends_on_the_seed_and_not_on_the_order_of_prompts() -> None:
    values = [0.0, 1.0, 0.5, 0.25, 1.0, 0.0, 0.125]
    assert bootstrap(values, seed=5, draws=501) == bootstrap(values[::-1], seed=5, draws=501)
    assert bootstrap(values, seed=5, draws=501) != bootstrap(values, seed=6, draws=501)
    for bad in ([1.0], [], [0.0, math.nan]):
        with pytest.raises(ValueError, match="bootstrap: want at least 2"):
            bootstrap(bad, seed=0)


# length control


def controlled(
    rows: Sequence[tuple[float, float]], prompts: list[str] | None = None, draws: int = 20
) -> LengthControlled:
    scores, deltas = np.array(rows, dtype=float).reshape(-1, 2).T
    return length_controlled(scores, deltas, prompts or [str(i) for i in range(len(rows))], seed=0, draws=draws)


def test_length_control_by_hand_where_the_model_is_saturated() -> None:
    """Two differences, 0 and 10, population std 5: the rate at 0 is the share there, the slope a ratio of odds."""
    made = controlled([(1, 0)] * 3 + [(0, 0)] + [(1, 10)] + [(0, 10)] * 3)
    assert made.value == pytest.approx(0.75, abs=1e-9)
    assert made.slope == pytest.approx(-2 * math.log(3) / math.tanh(2), abs=1e-8)
    assert made.n == 8


def test_what_only_length_explains_is_controlled_away() -> None:
    """Longer wins 3 of 4 and is the model's in 32 of 40 pairs: rate 26/40, and 1/2 at equal length."""
    rows = [(1, 10)] * 24 + [(0, 10)] * 8 + [(1, -10)] * 2 + [(0, -10)] * 6
    made = controlled(rows, draws=200)
    assert made.value == pytest.approx(0.5, abs=1e-9)
    assert made.interval is not None and made.interval.low < 0.5 < made.interval.high


def test_length_control_solves_the_likelihoods_equations() -> None:
    """sum w (score - p) = 0 and sum w x (score - p) = 0, ties and unequal numbers of samples included."""
    random = np.random.default_rng(4)
    deltas, scores = random.normal(20, 100, 60), random.choice([0.0, 0.5, 1.0], 60)
    prompts = [str(i // 2) for i in range(40)] + [f"single {i}" for i in range(20)]
    made = length_controlled(scores, deltas, prompts, seed=0, draws=1)
    weights = np.array([0.5] * 40 + [1.0] * 20)
    mean = (weights * deltas).sum() / 40
    x = np.tanh(deltas / math.sqrt((weights * (deltas - mean) ** 2).sum() / 40))
    assert made.value is not None and made.slope is not None
    p = 1 / (1 + np.exp(-(math.log(made.value / (1 - made.value)) + made.slope * x)))
    assert abs((weights * (scores - p)).sum()) < 1e-9
    assert abs((weights * x * (scores - p)).sum()) < 1e-9
    assert made.n == 40


def test_the_interval_is_of_scikit_learns_fits_to_resampled_prompts() -> None:
    """40 prompts of two samples, 40 of one; wins weighted by score, losses by 1 - score, standardised anew each."""
    random = np.random.default_rng(8)
    deltas, scores = random.normal(10, 50, 120), random.choice([0.0, 0.5, 1.0], 120)
    owner = np.concatenate([np.arange(80) // 2, np.arange(40, 80)])
    made = length_controlled(scores, deltas, [f"{i:03}" for i in owner], seed=5, draws=40, level=0.9)
    rates = []
    for counts in np.random.default_rng(5).multinomial(80, np.full(80, 1 / 80), size=40):
        weights = counts[owner] / np.bincount(owner)[owner]
        mean = np.average(deltas, weights=weights)
        x = np.tanh(deltas / np.sqrt(np.average((deltas - mean) ** 2, weights=weights)))[:, None]
        model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
        both_ways = np.concatenate([weights * scores, weights * (1 - scores)])
        model.fit(np.concatenate([x, x]), np.repeat([1, 0], 120), both_ways)
        rates.append(model.predict_proba([[0.0]])[0, 1])
    assert made.interval == pytest.approx(tuple(np.quantile(rates, [0.05, 0.95])), abs=1e-6)
    assert made.interval is not None and made.interval.high - made.interval.low > 0.05


def test_scikit_learn_is_asked_once_where_the_resamples_are_easy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit takes it milliseconds; the resamples take Newton's steps together."""
    asked = []
    fitted = length_control._regression

    def counted(scores: Any, feature: Any, weights: Any) -> Any:
        asked.append(len(scores))
        return fitted(scores, feature, weights)

    monkeypatch.setattr(length_control, "_regression", counted)
    made = controlled([(1, 10), (0, 9), (0.5, 7), (1, 8), (0, 12), (1, 6)] * 10, draws=100)
    assert made.diverged == 0
    assert asked == [60]


def test_samples_share_the_weight_of_their_prompt() -> None:
    rows = [(1, 5), (0, 3), (1, -2), (0.5, 1), (0, 0), (1, 1)]
    twice = controlled([row for row in rows for _ in range(2)], [str(i // 2) for i in range(12)])
    lopsided = controlled(rows + rows[:1], [*map(str, range(6)), "0"])
    once = controlled(rows)
    for made in (twice, lopsided):
        assert (made.value, made.slope) == pytest.approx((once.value, once.slope), abs=1e-9)
    assert controlled(rows + rows[:1]).value != pytest.approx(once.value, abs=1e-3)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "no pair is scored"),
        ([(1, 3), (1, -2), (1, 0)], "every scored pair was won"),
        ([(0, 3), (0, -2), (0, 0)], "every scored pair was lost"),
        ([(1, 0)], "every scored pair was won"),
        ([(0.5, 3)], "the same for every pair"),
        ([(1, 7), (0, 7), (0.5, 7)], "the same for every pair"),
        ([(1, 5), (1, 2), (0, 1), (0, -4)], "without error"),
        ([(0, 5), (0, 2), (1, 1), (1, -4)], "without error"),
        ([(1, 5), (0.5, 2), (0, 1)], "without error"),
        ([(1, 5), (0, 2), (1, 2), (0, 1)], "without error"),
    ],
)
def test_a_regression_without_a_solution_gives_a_reason_and_no_number(
    rows: list[tuple[float, float]], reason: str
) -> None:
    made = controlled(rows)
    assert (made.value, made.slope, made.interval) == (None, None, None)
    assert reason in made.reason


def test_all_ties_are_a_half_at_any_length() -> None:
    made = controlled([(0.5, 3), (0.5, -2), (0.5, 8), (0.5, 0)] * 3)
    assert made.value == pytest.approx(0.5, abs=1e-12)
    assert made.interval == pytest.approx((0.5, 0.5), abs=1e-12)


def test_resamples_without_a_solution_are_counted_and_widen_the_interval() -> None:
    made = controlled([(1, 0), (0, 0), (1, 10), (0, 10)], draws=100)
    assert made.value == pytest.approx(0.5, abs=1e-9)
    assert made.diverged > 5
    assert made.interval == (0.0, 1.0)
    assert made == controlled([(1, 0), (0, 0), (1, 10), (0, 10)], draws=100)


# summary


def test_outcomes_of_three_prompts_by_hand() -> None:
    made = summarise([*scored(1.0, 0.5, 0.0), *outcomes(both("unscored", "a", None))])
    third = stats.binomtest(1, 3).proportion_ci(method="wilson")
    for part in (made.win, made.tie, made.loss):
        assert part.value == pytest.approx(1 / 3, abs=1e-12)
        assert part.n == 3
        assert part.wilson == pytest.approx((third.low, third.high), abs=1e-12)
    assert made.win_rate.value == pytest.approx(0.5, abs=1e-12)
    assert (made.prompts, made.pairs, made.scored, made.unparsable, made.failed, made.judged) == (4, 4, 3, 1, 0, 7)
    assert made.consistency.value == 1.0
    assert made.consistency.n == 3


def test_samples_are_averaged_within_their_prompt_first() -> None:
    """Prompt 0: three wins, one loss. Prompt 1: one loss. The share of wins is (3/4 + 0) / 2 of n = 2, not 3/5 of 5."""
    lone = dataclasses.replace(scored(0.0)[0], prompt_id="other")
    made = summarise([*scored(1.0, 1.0, 0.0, 1.0, samples=4), lone])
    assert made.win.value == pytest.approx(0.375, abs=1e-12)
    assert made.win.n == 2
    assert made.win.wilson == pytest.approx(wilson(0.75, 2), abs=1e-12)
    assert made.win.bootstrap == (0.0, 0.75)


def test_a_judge_that_always_says_the_first_is_a_half_of_no_width_and_total_bias() -> None:
    made = summarise(outcomes([one for i in range(20) for one in both(f"p{i}", "a", "b")]))
    assert (made.win_rate.value, made.win_rate.bootstrap) == (0.5, (0.5, 0.5))
    assert (made.consistency.value, made.inconsistent) == (0.0, 20)
    assert (made.first_place.value, made.first_wins, made.judged) == (1.0, 40, 40)
    assert made.first_place.wilson == pytest.approx((20 / (20 + Z**2), 1.0), abs=1e-12)


def test_position_bias_is_over_verdicts_that_are_no_tie() -> None:
    """First place by prompt: 1 of 1 (a, tie), 1 of 2 (a, a), nothing to say (tie, tie)."""
    made = summarise(outcomes([*both("p", "a", "tie"), *both("q", "a", "a"), *both("r", "tie", "tie")]))
    assert made.first_place.value == pytest.approx(0.75, abs=1e-12)
    assert (made.first_place.n, made.ties, made.first_wins) == (2, 3, 2)


def test_without_a_verdict_there_are_counts_and_no_numbers() -> None:
    found = outcomes([*both("p", None, None), *both("q", None, None)])
    made = summarise(found, {("p", 0): (1, 2), ("q", 0): (3, 4)})
    for part in (made.win, made.tie, made.loss, made.win_rate, made.consistency, made.first_place):
        assert (part.value, part.n, part.wilson, part.bootstrap) == (None, 0, None, None)
    assert made.length_controlled is not None and made.length_controlled.reason == "no pair is scored"
    assert (made.unparsable, made.pairs, made.scored, made.orders, made.mean_lengths) == (4, 2, 0, 2, None)


def test_one_prompt_has_wilsons_interval_and_no_bootstrap() -> None:
    made = summarise(scored(1.0))
    assert made.win.wilson == pytest.approx((1 / (1 + Z**2), 1.0), abs=1e-12)
    assert made.win.bootstrap is None
    assert made.length_controlled is None


def test_all_ties_and_all_wins() -> None:
    ties, wins = summarise(scored(*[0.5] * 6)), summarise(scored(*[1.0] * 6))
    assert (ties.win.value, ties.tie.value, ties.win_rate.value) == (0.0, 1.0, 0.5)
    assert ties.win_rate.bootstrap == Interval(0.5, 0.5)
    assert ties.first_place.value is None
    assert (wins.win.value, wins.win_rate.value, wins.win_rate.bootstrap) == (1.0, 1.0, Interval(1.0, 1.0))
    assert wins.win.wilson == pytest.approx((6 / (6 + Z**2), 1.0), abs=1e-12)


def test_lengths_have_to_cover_what_is_scored() -> None:
    made = summarise(scored(1.0, 0.0), {("p0", 0): (4, 7), ("p1", 0): (2, 1)})
    assert made.mean_lengths == (3.0, 4.0)
    with pytest.raises(ValueError, match=r"got none for 1, \('p1', 0\) first"):
        summarise(scored(1.0, 0.0), {("p0", 0): (4, 7)})


def test_a_summary_is_of_its_seed_and_of_one_outcome_a_pair() -> None:
    def made(seed: int) -> Summary:
        lengths = {(f"p{i}", 0): (3 * i % 7, 2) for i in range(7)}
        return summarise(scored(1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 1.0), lengths, seed=seed, length_draws=50)

    assert made(1) == made(1)
    assert made(1) != made(2)
    with pytest.raises(ValueError, match="one outcome a pair, got 2 of 1"):
        summarise([*scored(1.0), *scored(0.0)])
