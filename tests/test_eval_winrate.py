"""The command on files, against a real server: what it counts, what it asks again, what it refuses."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import pytest
from eval_runs import command, files, kept, report_of, shown, truthful, write
from eval_server import Behaviour, EvalServer, Reply, always

from evaluation import winrate
from evaluation.reporting import statistics


def test_a_judge_that_always_says_a_finds_half_and_a_total_position_bias(tmp_path):
    with EvalServer(always(Reply(text="Verdict: A"))) as server:
        assert winrate.main(files(tmp_path, 12) + command(tmp_path, server.url)) == 0
        assert len(server.asked) == 24
    found = report_of(tmp_path)[0]
    assert found["win_rate"]["value"] == 0.5 and found["tie"]["value"] == 1.0
    assert [*found["win_rate"]["bootstrap"]] == [0.5, 0.5], "50 % +- 0"
    assert found["first_place"]["value"] == 1.0 and found["first_wins"] == 24
    assert found["consistency"]["value"] == 0.0 and found["inconsistent"] == 12


def test_a_truthful_judge_is_followed_in_both_orders(tmp_path):
    with EvalServer(lambda number, message: Reply(text=truthful(number, message).text, delay=0.05)) as server:
        assert winrate.main(files(tmp_path, 6) + command(tmp_path, server.url, "--concurrency", "3")) == 0
        assert server.most_at_once == 3
    found = report_of(tmp_path)[0]
    assert found["win_rate"]["value"] == 1.0 and found["consistency"]["value"] == 1.0
    assert found["first_place"]["value"] == 0.5
    assert {(v.order, v.verdict) for v in kept(tmp_path)} == {("ab", "a"), ("ba", "a")}
    assert {(v.prompt_tokens, v.completion_tokens, v.judge) for v in kept(tmp_path)} == {(100, 10, "judge")}


@pytest.mark.parametrize("text", ["I cannot say.", "Verdict: A\nThat was it.", "", None], ids=str)
def test_answers_without_a_verdict_in_its_place_are_counted_and_never_scored(tmp_path, text):
    def behave(number: int, message: str) -> Reply:
        return Reply(text=text) if "good 0" in message else truthful(number, message)

    with EvalServer(behave) as server:
        assert winrate.main(files(tmp_path, 3) + command(tmp_path, server.url)) == 0
        # an answer is an answer: it is not asked for again
        assert winrate.main(files(tmp_path, 3) + command(tmp_path, server.url)) == 0
        assert len(server.asked) == 6
    found = report_of(tmp_path)[0]
    assert (found["unparsable"], found["scored"], found["pairs"], found["failed"]) == (2, 2, 3, 0)
    assert found["win_rate"]["n"] == 2 and found["win_rate"]["value"] == 1.0
    assert Counter(v.raw for v in kept(tmp_path) if v.verdict is None) == {text or "": 2}


def test_failures_are_reported_and_asked_again(tmp_path, capsys):
    def broken(number: int, message: str) -> Reply:
        return Reply(status=400, text="filtered") if "good 1" in message else truthful(number, message)

    with EvalServer(broken) as server:
        assert winrate.main(files(tmp_path, 3) + command(tmp_path, server.url)) == 1
        assert "2 judgements have no answer" in capsys.readouterr().err
        assert (report_of(tmp_path)[0]["failed"], report_of(tmp_path)[0]["scored"]) == (2, 2)
        assert ["filtered" in v.error for v in kept(tmp_path) if v.error is not None] == [True, True]
        server.behaviour = truthful
        before = len(server.asked)
        assert winrate.main(files(tmp_path, 3) + command(tmp_path, server.url)) == 0
        assert len(server.asked) == before + 2
    assert (report_of(tmp_path)[0]["failed"], report_of(tmp_path)[0]["scored"]) == (0, 3)
    answered = [v.key for v in kept(tmp_path) if v.error is None]
    assert len(answered) == len(set(answered)) == 6


@pytest.mark.parametrize("status", [400, 401])
def test_a_judge_that_refuses_everything_ends_the_run_early(tmp_path, capsys, status):
    with EvalServer(always(Reply(status=status, text="who are you"))) as server:
        arguments = files(tmp_path, 100) + command(tmp_path, server.url, "--stop-after", "5", "--concurrency", "4")
        assert winrate.main(arguments) == 1
        assert len(server.asked) < 5 + 2 * 4
        error = capsys.readouterr().err
        assert f"in a row without an answer, the last: HTTP {status}" in error and "goes on from here" in error
        assert not (tmp_path / "out" / "report.md").exists()
        server.behaviour = truthful
        assert winrate.main(arguments) == 0
    assert report_of(tmp_path)[0]["scored"] == 100


def some_broken(status: int, until: int) -> Behaviour:
    """Every fourth prompt never gets an answer; from a number of requests on the server is gone."""

    def behave(number: int, message: str) -> Reply:
        if number >= until:
            return Reply(status=401, text="gone")
        broken = int(shown(message)["A"].split()[1]) % 4 == 1
        return Reply(status=status, text="never") if broken else truthful(number, message)

    return behave


def prompts_asked(server: EvalServer) -> list[int]:
    return [int(shown(asked.message)["A"].split()[1]) for asked in server.asked]


@pytest.mark.parametrize("status", [400, 500])
def test_more_failures_than_stop_after_do_not_hold_up_a_resume(tmp_path, capsys, status):
    more = ("--stop-after", "3", "--concurrency", "1", "--attempts", "1")
    with EvalServer(some_broken(status, until=50)) as server:
        arguments = files(tmp_path, 40) + command(tmp_path, server.url, *more)
        assert winrate.main(arguments) == 1 and len(server.asked) == 53
        assert "judgements in a row without an answer, the last: HTTP 401" in capsys.readouterr().err
        server.asked.clear()
        server.behaviour = some_broken(status, until=1000)
        assert winrate.main(arguments) == 1
        (found,) = report_of(tmp_path)
        left = 20 if status == 400 else 21  # of prompt 26 one was not asked again
        assert (found["prompts"], found["scored"], found["failed"]) == (40, 50 - left, left)
        said, asked = capsys.readouterr().err, prompts_asked(server)
        assert f"{left} judgements have no answer; the same command asks for them again" in said
        assert min(asked[:27]) >= 26, "what was never asked comes first"
        if status == 400:  # such an answer is of its message alone
            assert Counter(n for n in asked if n % 4 == 1) == dict.fromkeys(range(1, 40, 4), 2)
            return
        assert asked[27:] == [1, 1, 5] and "not all that failed before were asked again: 3 judgements" in said
        server.asked.clear()
        assert winrate.main(arguments) == 1
        assert prompts_asked(server) == [5, 9, 9], "in turn"
        server.behaviour = truthful
        assert winrate.main(arguments) == 0
    assert report_of(tmp_path)[0]["scored"] == 40


def test_an_answer_that_was_cut_is_never_scored(tmp_path, capsys):
    def behave(number: int, message: str) -> Reply:
        told = truthful(number, message)
        return Reply(text=told.text, finish="length") if "good 0" in message else told

    with EvalServer(behave) as server:
        for _ in range(2):  # from the server, then from the cache
            assert winrate.main(files(tmp_path, 3) + command(tmp_path, server.url)) == 0
            assert "2 without a verdict (2 of them cut)" in capsys.readouterr().out
            (found,) = report_of(tmp_path)
            assert (found["unparsable"], found["cut"], found["scored"], found["failed"]) == (2, 2, 2, 0)
            shutil.rmtree(tmp_path / "out")
        assert len(server.asked) == 6


def test_inputs_in_the_folder_of_the_report_stay(tmp_path, capsys):
    with EvalServer(truthful) as server:
        arguments = files(tmp_path, 2) + command(tmp_path, server.url)
        a = tmp_path / "out" / "prompts.jsonl"
        a.parent.mkdir()
        before = (tmp_path / "model.jsonl").read_bytes()
        a.write_bytes(before)
        assert winrate.main([*arguments, "--a", str(a)]) == 0 and a.read_bytes() == before
        for name in ("per_prompt.jsonl", "per_prompt/verdicts.jsonl"):
            taken = tmp_path / "out" / name
            taken.parent.mkdir(exist_ok=True)
            taken.unlink(missing_ok=True)
            taken.write_bytes(before)
            link = tmp_path / "per_prompt.jsonl"
            link.unlink(missing_ok=True)
            link.symlink_to(taken)
            assert winrate.main([*arguments, "--a", str(link)]) == 2
            assert "want an output that is neither an input" in capsys.readouterr().err
            assert taken.read_bytes() == before


def test_a_mistake_of_our_own_is_not_told_as_one_of_the_users(tmp_path, monkeypatch):
    def mistaken(*args: object, **more: object) -> None:
        raise ValueError("summarise: want what nobody gave")

    monkeypatch.setattr(statistics, "summarise", mistaken)
    with EvalServer(truthful) as server, pytest.raises(ValueError, match="what nobody gave"):
        winrate.main(files(tmp_path, 2) + command(tmp_path, server.url))


def test_a_random_order_is_drawn_once_a_pair(tmp_path):
    with EvalServer(truthful) as server:
        arguments = files(tmp_path, 40) + command(tmp_path, server.url, "--orders", "random")
        assert winrate.main(arguments) == 0
        assert len(server.asked) == 40
        drawn = {v.prompt_id: v.order for v in kept(tmp_path)}
        assert len(drawn) == 40 and 8 <= Counter(drawn.values())["ab"] <= 32
        # the order of a prompt does not depend on which others are judged
        arguments = files(tmp_path, 20) + command(tmp_path, server.url, "--orders", "random", out="fewer")
        assert winrate.main(arguments) == 0
        assert len(server.asked) == 40
        assert {v.prompt_id: v.order for v in kept(tmp_path, "fewer")}.items() <= drawn.items()
        arguments = files(tmp_path, 40) + command(
            tmp_path, server.url, "--orders", "random", "--seed", "1", out="other"
        )
        assert winrate.main(arguments) == 0
    assert {v.prompt_id: v.order for v in kept(tmp_path, "other")} != drawn


def test_a_dry_run_asks_nothing_and_says_what_it_would_cost(tmp_path, capsys):
    with EvalServer(truthful) as server:
        prices = ("--price-prompt", "10", "--price-answer", "20", "--max-tokens", "500")
        arguments = files(tmp_path, 10) + command(tmp_path, server.url, *prices)
        assert winrate.main([*arguments, "--dry_run"]) == 0
        assert server.asked == []
        said = capsys.readouterr().out
        assert "20 wanted, 0 judged already, 0 in the cache, 20 to ask for" in said
        tokens = int(re.search(r"about ([\d,]+) of prompts", said)[1].replace(",", ""))
        assert 20 * 300 < tokens < 20 * 800
        # 120 tokens an answer are assumed, 500 is the most
        assert f"about {(tokens * 10 + 2400 * 20) / 1e6:.2f}, at most {(tokens * 10 + 10000 * 20) / 1e6:.2f}" in said
        # a dry run commits to nothing
        assert winrate.main([*arguments, "--template", "summary"]) == 0
    assert "2,000 tokens of prompts, 200 of answers, cost 0.02" in capsys.readouterr().out


def test_a_folder_of_other_verdicts_is_refused(tmp_path, capsys):
    with EvalServer(truthful) as server:
        arguments = files(tmp_path, 3) + command(tmp_path, server.url)
        assert winrate.main(arguments) == 0
        for more, named in (
            (("--template", "helpful"), "template"), (("--temperature", "0.7"), "sampling"),
            (("--judge-model", "other"), "judge"), (("--orders", "random"), "orders"),
        ):  # fmt: skip
            assert winrate.main([*arguments, *more]) == 2
            assert f"want verdicts with {named}" in capsys.readouterr().err
        write(tmp_path / "model.jsonl", ["good 0", "good 1", "changed"])
        assert winrate.main(arguments) == 2
        assert "want verdicts with pairs" in capsys.readouterr().err
        # another folder takes from the cache what is the same
        assert winrate.main([*arguments, "--out", str(tmp_path / "new")]) == 0
        assert len(server.asked) == 6 + 2
    assert report_of(tmp_path, "new")[0]["scored"] == 3


def test_several_models_stand_in_one_table(tmp_path, capsys):
    files(tmp_path, 5)
    worse = write(tmp_path / "worse.jsonl", [f"bad too {i}" for i in range(5)])
    arguments = ["--a", str(tmp_path / "model.jsonl"), str(worse), "--b", str(tmp_path / "base.jsonl")]
    with EvalServer(truthful) as server:
        assert winrate.main(arguments + command(tmp_path, server.url)) == 0
    assert [(r["model"], r["win_rate"]["value"]) for r in report_of(tmp_path)] == [("model", 1.0), ("worse", 0.5)]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "# Win rate against base" in page and page in capsys.readouterr().out


def test_what_has_no_counterpart_is_counted(tmp_path, capsys):
    a = write(tmp_path / "model.jsonl", ["good", "good", "good", "good"], ["p", "p", "q", "r"])
    b = write(tmp_path / "base.jsonl", ["bad", "bad", "bad"], ["p", "q", "s"])
    with EvalServer(truthful) as server:
        assert winrate.main(["--a", str(a), "--b", str(b), *command(tmp_path, server.url)]) == 0
    said = capsys.readouterr().out
    # both samples of p meet the baseline's one
    assert "model: 3 pairs" in said
    assert "not compared: 1 responses of --a, prompt not in --b" in said
    assert "not compared: 1 responses of --b, prompt not in --a" in said
    assert sorted(v.sample for v in kept(tmp_path)) == [0, 0, 0, 0, 1, 1]


def test_bad_input_ends_before_any_request(tmp_path, capsys):
    with EvalServer(truthful) as server:
        arguments = files(tmp_path, 2) + command(tmp_path, server.url)
        b = write(tmp_path / "b2.jsonl", ["x"], ["elsewhere"])
        for more, named in (
            (("--b", str(b)), "want prompts that both files"), (("--template", "none"), "template: want one of"),
            (("--price-prompt", "1"), "both, got one"), (("--timeout", "0"), "judge: want timeout > 0"),
            (("--b", str(tmp_path / "absent")), "absent"),
            (("--judge-url", "http://localhost:abc/v1"), "judge: want a URL"),
            (("--cache", str(tmp_path / "b2.jsonl"), "--b", str(b)), "want an output that is neither an input"),
            (("--judge-url", "https://example.com/v1", "--api-key-env", "NOT_SET"), "variable NOT_SET, got none"),
        ):  # fmt: skip
            assert winrate.main([*arguments, *more]) == 2
            assert named in capsys.readouterr().err
        assert server.asked == []
