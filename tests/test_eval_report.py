"""The report of models against a baseline, to the byte, and the export to alpaca_eval's JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from evaluation import alpaca, files, responses
from evaluation.judging import verdicts
from evaluation.judging.pairing import Matched, Pair, calls, match
from evaluation.judging.verdicts import About, Order, Verdict, Winner, outcomes
from evaluation.reporting import report
from evaluation.reporting.report import Comparison
from evaluation.reporting.statistics import Lengths, summarise
from evaluation.responses import Response

Said = tuple[Winner | None, Winner | None]  # in the order ab, in the order ba

ORDERS: tuple[Order, Order] = ("ab", "ba")
NAMES = {"model": "new", "baseline": "base", "judge": "a judge", "template": "helpful"}
WIN: Said = ("a", "a")
LOSS: Said = ("b", "b")
PAIRS: list[Said] = [WIN, LOSS, ("a", "b"), ("tie", "tie"), ("a", None), WIN, LOSS, WIN]


def comparison(model: str, said: list[Said], lengths: Lengths | None = None, **more: Any) -> Comparison:
    judged = [
        Verdict(prompt_id=f"p{i}", order=order, verdict=verdict)
        for i, pair in enumerate(said)
        for order, verdict in zip(ORDERS, pair, strict=True)
    ]
    made = outcomes(judged)
    summary = summarise(made, lengths, length_draws=20)
    names = {**NAMES, "model": model, **more}
    return Comparison(**names, summary=summary, outcomes=made, lengths=lengths)


def lengths_of(*deltas: int) -> dict[tuple[str, int], tuple[int, int]]:
    return {(f"p{i}", 0): (100 + delta, 100) for i, delta in enumerate(deltas)}


MIXED = lengths_of(20, 5, -5, 30, 0, -20, -10, 15)


def rows_of(page: str, model: str) -> list[list[str]]:
    """The cells after the model's name, a list a table."""
    return [line.strip("| ").split(" | ")[1:] for line in page.splitlines() if line.startswith(f"| {model} |")]


def test_the_tables_hold_the_numbers_of_the_summary() -> None:
    """Of 7 scored prompts 3 won, 2 tied, one of them inconsistent, 2 lost."""
    outcome, rate, judge, counts = rows_of(report.page([comparison("new", PAIRS, MIXED)]), "new")
    assert outcome[0] == "7"
    assert [cell.split(" [")[0] for cell in outcome[1:]] == ["42.9 %", "28.6 %", "28.6 %"]
    assert outcome[1].endswith("[15.8 to 75.0]")  # wilson of 3 in 7, by hand
    assert rate[:2] == ["7", "57.1 %"]
    assert rate[4].endswith(" %")
    assert judge[1].startswith("85.7 %")  # 6 of 7 pairs agree
    assert judge[-1] == "105 / 100"
    assert counts == ["8", "7", "1", "15", "2", "8", "1", "0", "0"]


def test_several_models_stand_in_one_table_in_the_order_given() -> None:
    page = report.page([comparison("second", PAIRS), comparison("first", PAIRS[:2])])
    lines = [line.split(" | ")[0] for line in page.splitlines() if line.startswith(("| second", "| first"))]
    assert lines == ["| second", "| first"] * 4
    assert rows_of(page, "first")[1][4:] == ["not asked for", "none"]


def test_the_page_says_what_n_is_and_where_a_number_is_missing() -> None:
    wins: list[Said] = [WIN] * 3
    page = report.page(
        [
            comparison("unread", [(None, None)] * 2, lengths_of(1, 2)),
            comparison("winner", wins, lengths_of(1, 2, 3)),
            comparison("lone", wins[:1]),
            comparison("small", [WIN, LOSS, WIN, LOSS], lengths_of(0, 0, 10, 10)),
        ]
    )
    assert "n counts prompts" in page
    assert "- unread: 2 of 2 prompts have no scored pair." in page
    assert "- unread: no length-controlled win rate: no pair is scored." in page
    assert rows_of(page, "unread")[0] == ["0", "none", "none", "none"]
    assert "- winner: no length-controlled win rate: every scored pair was won, so the regression diverges." in page
    assert rows_of(page, "winner")[1][-2:] == ["none", "none"]
    assert "- lone: one prompt has no bootstrap interval." in page
    assert "- small: the length-controlled regression has no solution on " in page
    assert "nan" not in page


def test_a_table_of_unlike_comparisons_is_refused(tmp_path: Path) -> None:
    one = comparison("one", PAIRS)
    for other, why in (
        (comparison("two", PAIRS, baseline="other"), "one baseline"),
        (comparison("two", PAIRS, judge="other"), "judge"),
        (comparison("two", PAIRS, template="other"), "template"),
        (comparison("one", PAIRS), "each model once"),
    ):
        with pytest.raises(ValueError, match=why):
            report.write(tmp_path / "out", [one, other])
    with pytest.raises(ValueError, match="at least one"):
        report.write(tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_the_same_input_gives_the_same_bytes_whatever_the_users_style(tmp_path: Path) -> None:
    compared = [comparison("a $tyle_ | name$", PAIRS, MIXED), comparison("other", [(None, None)])]
    paths = report.write(tmp_path / "one", compared)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        again = report.write(tmp_path / "two", compared)
    assert [path.name for path in paths] == ["report.md", "report.json", "report.png", "per_prompt.jsonl"]
    for first, second in zip(paths, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    image = paths[2].read_bytes()
    assert image.startswith(b"\x89PNG")
    assert b"Software" not in image
    assert "a $tyle_ \\| name$" in paths[0].read_text()


def test_another_outcome_changes_the_figure(tmp_path: Path) -> None:
    images = [report.write(tmp_path / str(n), [comparison("m", PAIRS[:n])])[2].read_bytes() for n in (3, 4)]
    assert images[0] != images[1]


def test_a_line_a_prompt_adds_up_to_the_shares(tmp_path: Path) -> None:
    made = comparison("new", PAIRS, MIXED)
    lines = report.write(tmp_path, [made, comparison("other", PAIRS[:1])])[3].read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["model"] for row in rows] == ["new"] * 8 + ["other"]
    assert rows[2] == {
        "model": "new", "prompt_id": "p2", "score": 0.5, "win": 0.0, "tie": 1.0, "loss": 0.0, "consistent": 0.0,
        "first_place": 1.0, "samples": 1, "scored": 1, "judged": 2, "unparsable": 0, "cut": 0, "failed": 0,
        "lengths": [[95, 100]],
    }  # fmt: skip
    assert rows[4] == {
        "model": "new", "prompt_id": "p4", "score": None, "win": None, "tie": None, "loss": None, "consistent": None,
        "first_place": 1.0, "samples": 1, "scored": 0, "judged": 1, "unparsable": 1, "cut": 0, "failed": 0,
        "lengths": [],
    }  # fmt: skip
    for name, share in (("score", made.summary.win_rate), ("first_place", made.summary.first_place)):
        values = [row[name] for row in rows[:8] if row[name] is not None]
        assert sum(values) / len(values) == pytest.approx(share.value, abs=1e-12)
        assert len(values) == share.n
    (summary, _) = json.loads((tmp_path / "report.json").read_text())
    assert (summary["model"], summary["win_rate"]["n"], summary["unparsable"]) == ("new", 7, 1)


def test_answers_that_were_cut_are_told_of() -> None:
    judged = [
        Verdict(prompt_id="p", order=order, verdict=None, raw="Verdict: A", finish=finish)
        for order, finish in zip(ORDERS, ("length", "stop"), strict=True)
    ]
    made = outcomes(judged)
    page = report.page([Comparison(**NAMES, summary=summarise(made), outcomes=made)])
    assert rows_of(page, "new")[-1][-3:] == ["2", "1", "0"]
    assert "- new: 1 answers of the judge were cut before a verdict; a larger --max-tokens" in page


# alpaca_eval's JSON


def test_model_outputs_have_alpaca_evals_keys_and_one_sample(tmp_path: Path) -> None:
    chat: Any = [{"role": "user", "content": "Say ü."}]
    given = [
        Response(prompt="Hi.", response="Hello.", sample=0),
        Response(prompt="Hi.", response="Hey.", sample=1),
        Response(prompt=chat, response="ü", sample=0),
    ]
    path = tmp_path / "outputs.json"
    alpaca.write(path, alpaca.model_outputs(given, generator="ours", dataset="test"))
    assert json.loads(path.read_text()) == [
        {"instruction": "Hi.", "output": "Hello.", "generator": "ours", "dataset": "test"},
        {"instruction": "Say ü.", "output": "ü", "generator": "ours", "dataset": "test"},
    ]
    assert [row["output"] for row in alpaca.model_outputs(given, generator="ours", sample=1)] == ["Hey."]
    with pytest.raises(ValueError, match=r"want responses with sample 2, got \[0, 1\]"):
        alpaca.model_outputs(given, generator="ours", sample=2)
    with pytest.raises(ValueError, match=r"ends in \.json"):
        alpaca.write(tmp_path / "outputs.jsonl", [])


def test_a_prompt_of_several_messages_cannot_be_exported() -> None:
    chat: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    with pytest.raises(ValueError, match=r"prompt p: want a text or one message .* got \['system', 'user'\]"):
        alpaca.model_outputs([Response(prompt=chat, response="Hello.", prompt_id="p")], generator="ours")


def test_annotations_call_the_baseline_1_and_the_model_2() -> None:
    """preference - 1 is our score, so its mean is the win rate with one sample a prompt; unscored pairs are null."""
    made = comparison("new", PAIRS)
    pairs = [Pair(f"p{i}", 0, f"q{i}", f"a{i}", f"b{i}") for i in range(len(PAIRS))]
    rows = alpaca.annotated(made.outcomes, pairs, model="new", baseline="base", annotator="j", dataset="d")
    assert [row["preference"] for row in rows] == [2.0, 1.0, 1.5, 1.5, None, 2.0, 1.0, 2.0]
    assert rows[1] == {
        "instruction": "q1", "output_1": "b1", "generator_1": "base", "dataset": "d", "output_2": "a1",
        "generator_2": "new", "annotator": "j", "preference": 1.0,
    }  # fmt: skip
    known = [row["preference"] - 1 for row in rows if row["preference"] is not None]
    assert sum(known) / len(known) == pytest.approx(made.summary.win_rate.value, abs=1e-12)
    with pytest.raises(ValueError, match=r"a pair for every outcome, got none for 1, \('p7', 0\) first"):
        alpaca.annotated(made.outcomes, pairs[:-1], model="new", baseline="base", annotator="j")
    with pytest.raises(ValueError, match="want two names"):
        alpaca.annotated(made.outcomes, pairs, model="x", baseline="x", annotator="j")


def test_the_command_exports_both_kinds_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, judged = (tmp_path / f"{name}.jsonl" for name in ("new", "base", "verdicts"))
    responses.write(a, [Response(prompt="Hi.", response=text, sample=i) for i, text in enumerate(("Hello.", "Hey."))])
    responses.write(b, [Response(prompt="Hi.", response="Yes?")])
    name = responses.id_of("Hi.")
    verdicts.append(
        judged,
        [Verdict(prompt_id=name, sample=i, order="ab", verdict="a" if i else "tie", judge="a judge") for i in (0, 1)],
    )
    out = str(tmp_path / "out.json")
    assert alpaca.main(["outputs", str(a), "--generator", "g", "--sample", "1", "--out", out]) == 0
    assert json.loads(Path(out).read_text()) == [
        {"instruction": "Hi.", "output": "Hey.", "generator": "g", "dataset": ""}
    ]
    matched = match(responses.read(a), responses.read(b))
    about = About(judge="a judge", url="u", sampling={}, template="t", orders="both", seed=None, pairs=matched.digest)
    both = ["--a", str(a), "--b", str(b), "--verdicts", str(judged), "--dataset", "d"]
    assert alpaca.main(["annotations", *both, "--out", out]) == 2
    assert "want about.json beside verdicts.jsonl, got none" in capsys.readouterr().err
    files.write_rows(tmp_path / "about.json", [asdict(about)])
    assert alpaca.main(["annotations", *both, "--out", out]) == 2
    assert f"got nothing for 2 judgements, ('{name}', 0, 'ba') the first" in capsys.readouterr().err
    random = replace(about, orders="random", seed=next(s for s in range(99) if orders(matched, s) == {"ab"}))
    files.write_rows(tmp_path / "about.json", [asdict(random)])
    assert alpaca.main(["annotations", *both, "--out", out]) == 0
    rows = json.loads(Path(out).read_text())
    assert [(row["output_2"], row["output_1"], row["preference"]) for row in rows] == [
        ("Hello.", "Yes?", 1.5), ("Hey.", "Yes?", 2.0)
    ]  # fmt: skip
    assert {(row["generator_2"], row["generator_1"], row["annotator"]) for row in rows} == {("new", "base", "a judge")}
    assert alpaca.main(["annotations", *both, "--out", str(tmp_path / "out.csv")]) == 2
    assert "ends in .json" in capsys.readouterr().err
    before = Path(out).read_bytes()
    responses.write(b, [Response(prompt="Hi.", response="Another one.")])
    assert alpaca.main(["annotations", *both, "--out", out]) == 2
    assert "want the files that were judged, got --a and --b with other pairs" in capsys.readouterr().err
    assert Path(out).read_bytes() == before
    for what in (["outputs", out, "--generator", "g"], ["annotations", *both[:4], "--verdicts", out]):
        assert alpaca.main([*what, "--out", out]) == 2
        assert "want an output that is neither an input" in capsys.readouterr().err


def orders(matched: Matched, seed: int) -> set[str]:
    return {call.order for call in calls(matched.pairs, "random", seed)}
