"""The command stopped and gone on with, several at once, with a key that shows nowhere, and what a judgement costs."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest
from eval_runs import ROOT, command, files, kept, process, report_of, truthful
from eval_server import EvalServer, Reply
from filelock import FileLock

from evaluation import winrate

SECRET = "sk-test-0123456789abcdef"


def wait_for(server: EvalServer, count: int) -> None:
    for _ in range(1500):
        if len(server.asked) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"want {count} requests, got {len(server.asked)}")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_stopped_in_the_middle_it_goes_on_without_a_lost_or_doubled_verdict(tmp_path, number):
    with EvalServer(lambda i, message: Reply(text=truthful(i, message).text, delay=0.02)) as server:
        arguments = files(tmp_path, 100) + command(tmp_path, server.url, "--concurrency", "4")
        running = process(arguments)
        wait_for(server, 60)
        running.send_signal(number)
        _, error = running.communicate(timeout=20)
        asked = len(server.asked)
        assert 60 <= asked < 150
        file = tmp_path / "out" / "model" / "verdicts.jsonl"
        if number != signal.SIGKILL:
            assert running.returncode == 130 and "stopped; the same command goes on" in error
            assert asked - 5 <= len(kept(tmp_path)) <= asked  # the four in flight are given up
        elif file.exists():
            file.write_bytes(file.read_bytes()[:-10])  # as a power cut leaves it
        assert winrate.main(arguments) == 0
        assert len(server.asked) <= 200 + 5  # killed or not, answers are in the cache
    keys = [v.key for v in kept(tmp_path)]
    assert len(keys) == len(set(keys)) == 200
    assert report_of(tmp_path)[0]["win_rate"]["value"] == 1.0


def test_two_processes_on_one_cache_come_to_the_same_verdicts(tmp_path):
    chance = random.Random(0)

    def moody(number: int, message: str) -> Reply:
        return Reply(text=f"{number}\nVerdict: {chance.choice('AB')}", delay=0.01)

    with EvalServer(moody) as server:
        both = [process(files(tmp_path, 40) + command(tmp_path, server.url, out=out)) for out in ("one", "two")]
        assert [running.wait(timeout=60) for running in both] == [0, 0], [p.stderr.read() for p in both]
        assert 80 <= len(server.asked) <= 160
    one, two = ({v.key: v for v in kept(tmp_path, out)} for out in ("one", "two"))
    assert one == two and len(one) == 80


def test_a_folder_that_another_process_writes_is_refused(tmp_path, capsys):
    with EvalServer(truthful) as server:
        arguments = files(tmp_path, 3) + command(tmp_path, server.url)
        (tmp_path / "out" / "model").mkdir(parents=True)
        with FileLock(tmp_path / "out" / "model" / ".lock"):
            assert winrate.main(arguments) == 2
        assert "want a folder that no other process is writing" in capsys.readouterr().err
        assert server.asked == []
        assert winrate.main(arguments) == 0


def test_the_key_is_in_no_file_and_no_output(tmp_path):
    def leaky(number: int, message: str) -> Reply:
        text = f"your key is {SECRET}\nVerdict: A"
        return Reply(text=text, status=400 if "good 0" in message else 200, headers={"x-key": SECRET})

    with EvalServer(leaky) as server:
        running = process(files(tmp_path, 3) + command(tmp_path, server.url), OPENAI_API_KEY=SECRET, OPENAI_LOG="debug")
        output = "".join(running.communicate(timeout=60))
        assert running.returncode == 1
        assert all(asked.headers["authorization"] == f"Bearer {SECRET}" for asked in server.asked)
        assert all(SECRET not in json.dumps(asked.body) for asked in server.asked)
    assert "openai" in output  # its log was on
    assert SECRET not in output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 8
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    assert (
        sum("[key]" in v.raw for v in kept(tmp_path)) == 4
        and sum("[key]" in (v.error or "") for v in kept(tmp_path)) == 2
    )


@pytest.mark.slow
def test_ten_thousand_judgements_cost_less_than_ten_milliseconds_each(tmp_path, monkeypatch):
    """The judge takes half a second: what goes beyond 25 s, with 200 at once, is the client's, as is its CPU time."""
    delay, count, at_once = 0.5, 5000, 200
    judge_all, spent = winrate.judge_all, []

    def timed(*arguments):
        wall, cpu = time.perf_counter(), time.process_time()
        tally = judge_all(*arguments)
        spent.append((time.perf_counter() - wall, time.process_time() - cpu))
        return tally

    monkeypatch.setattr(winrate, "judge_all", timed)
    judge = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "eval_server.py"), str(delay)], stdout=subprocess.PIPE, text=True
    )
    try:
        url = judge.stdout.readline().strip()
        arguments = files(tmp_path, count) + command(tmp_path, url, "--concurrency", str(at_once), "--timeout", "60")
        assert winrate.main(arguments) == 0
    finally:
        judge.terminate()
        judge.wait(timeout=10)
    assert len(kept(tmp_path)) == 2 * count
    [(wall, cpu)] = spent
    overhead = (wall - delay * 2 * count / at_once) / (2 * count)
    print(f"overhead {1e3 * overhead:.2f} ms each, CPU {1e3 * cpu / (2 * count):.2f} ms each")
    assert overhead < 0.010 and cpu / (2 * count) < 0.010
