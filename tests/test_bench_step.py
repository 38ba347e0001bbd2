"""bench_step: all providers on the same batches, agreement before the clock, and records that carry what they need."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
from transformers import Trainer

from benchmarks import bench_step
from benchmarks.steps import case as step_case
from benchmarks.steps.providers import PROVIDERS, NaiveScoring, NaiveTrainer, this_trainer
from benchmarks.steps.worker import Seen, Turn

pytestmark = pytest.mark.timeout(600)
SMALL = ["--model", "tiny", "--vocabulary", "300", "--pairs", "2", "--rounds", "2", "--longest", "48"]
CASE = step_case.Case(
    model="tiny", vocabulary=300, pairs=2, longest=48, dtype="fp32", workspace_mb=64, total=bench_step.CHECKED + 2
)


class Louder(NaiveScoring):
    """A head that is off by a thousandth of every log-prob."""

    def logprob(self, hidden, weight, labels):
        return super().logprob(hidden, weight, labels) * 1.001


class LouderTrainer(NaiveTrainer):
    scoring = Louder


def broken(case: step_case.Case, folder: Path, output: Path) -> Trainer:
    raise ImportError("no such library")


def leaves(case: step_case.Case, folder: Path, output: Path) -> Trainer:
    raise SystemExit(3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[list[dict], str]:
    """-> the records of a run of all providers."""
    file = tmp_path_factory.mktemp("results") / "step.jsonl"
    bench_step.main([*SMALL, "--save", str(file)])
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_all_providers_are_timed_and_agree(saved):
    assert [r["provider"] for r in saved] == ["ours", "naive", "compiled", "compiled-scored", "trl"]
    ours = saved[0]
    assert ours["losses"][0] == pytest.approx(math.log(2), abs=1e-6), "the reference is the policy's start"
    assert abs(ours["losses"][1] - ours["losses"][0]) > 1e-4, "the second step sees an updated policy"
    for r in saved:
        assert (r["state"], r["reason"]) == ("timed", "")
        assert r["losses"] == pytest.approx(ours["losses"], rel=1e-4)
        assert r["grad_norms"] == pytest.approx(ours["grad_norms"], rel=1e-4) and min(r["grad_norms"]) > 0
        assert r["batches"] == ours["batches"] and len(r["batches"]) == bench_step.CHECKED + 2


def test_figures_are_ordered_and_ratios_are_of_the_same_rounds(saved):
    for r in saved:
        assert 0 < r["low"] <= r["tokens_per_second"] <= r["high"]
        assert r["extra_peak_mib"] >= 0 and r["standing_mib"] > 0
    by_name = {r["provider"]: r for r in saved}
    assert by_name["compiled"]["ratio_compiled"] == by_name["trl"]["ratio_trl"] == 1.0
    assert all(r["ratio_compiled"] > 0 and r["ratio_trl"] > 0 for r in saved)


def test_records_name_what_a_figure_needs(saved):
    for r in saved:
        assert {"device", "torch", "python", "commit", "date", "transformers", "trl", "command"} <= r.keys()
        assert r["command"].startswith("python -m benchmarks.bench_step --model tiny")
        assert (r["model"], r["vocabulary"], r["dtype"], r["pairs"]) == ("tiny", 300, "fp32", 2)


def test_who_is_wrong_or_cannot_run_is_shown_and_not_timed(capsys):
    providers = {
        "ours": PROVIDERS["ours"], "louder": partial(this_trainer, kind=LouderTrainer), "broken": broken,
        "leaves": leaves,
    }  # fmt: skip
    rows = bench_step.bench(CASE, 1, 2, providers)
    assert [row.state for row in rows] == ["timed", "wrong", "missing", "missing"]
    assert [row.tokens_per_second is None for row in rows] == [False, True, True, True]
    assert rows[1].reason.startswith("loss of step 1: want 0.6931")
    assert rows[2].reason == "ImportError: no such library" and rows[3].reason == "SystemExit: 3"
    bench_step.show(CASE, rows)
    shown = capsys.readouterr().out
    assert "louder           wrong: loss of step 1" in shown and "broken           missing: ImportError" in shown


def test_nothing_is_measured_without_ours():
    with pytest.raises(RuntimeError, match="ours, which the others are compared with: ImportError: no such library"):
        bench_step.bench(CASE, 1, 1, {"ours": broken, "naive": PROVIDERS["naive"]})


def turn(first: list[tuple[float, float]], tokens: int = 7) -> Turn:
    return Turn(1.0, 0, 0, tuple(first), (Seen("a", 5, 8, 3), Seen("b", tokens, 9, 4)))


@pytest.mark.parametrize(
    ("first", "tokens", "said"),
    [
        ([(0.5, 2.0), (0.4, 3.0)], 7, None),
        ([(0.50004, 2.0), (0.4, 3.0)], 7, None),
        ([(0.50006, 2.0), (0.4, 3.0)], 7, "loss of step 1: want 0.5 within 0.0001, got 0.50006"),
        ([(0.5, 2.0), (0.4, 3.1)], 7, "gradient norm of step 2: want 3 within 0.0001, got 3.1"),
        ([(0.5, math.nan), (0.4, 3.0)], 7, "gradient norm of step 1: want 2 within 0.0001, got nan"),
        ([(0.5, 2.0), (0.4, 3.0)], 6, "batch of step 2: want 7 tokens as ours, got 6"),
    ],
)
def test_a_difference_in_words(first, tokens, said):
    found = bench_step.difference(turn(first, tokens), turn([(0.5, 2.0), (0.4, 3.0)]), 1e-4)
    assert found is None if said is None else found is not None and found.startswith(said)


def test_lengths_are_mixed_and_fit(tmp_path):
    case = step_case.Case(
        model="tiny", vocabulary=300, pairs=4, longest=120, dtype="fp32", workspace_mb=64, total=100
    )  # fmt: skip
    step_case.write(case, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    prompts, chosen = ([len(row[name].split()) for row in rows] for name in ("prompt", "chosen"))
    assert len(rows) == 400 and max(p + c + 1 for p, c in zip(prompts, chosen, strict=True)) <= 120
    assert sorted(prompts)[200] == pytest.approx(7.5, abs=1) and sorted(chosen)[200] == pytest.approx(15, abs=1.5)
    assert min(chosen) < 5 and max(chosen) > 60
    step_case.write(case, tmp_path)
    assert rows == [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]


def test_arguments_that_make_no_sense():
    for bad in (["--pairs", "0"], ["--rounds", "0"], ["--vocabulary", "3"], ["--providers", "ours"], ["--model", "x"]):
        with pytest.raises(SystemExit):
            bench_step.parse([*SMALL, *bad])
