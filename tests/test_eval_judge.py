"""The judge's client against a real server that misbehaves, and the cache of its answers."""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import itertools
import json
import re
import sqlite3
import subprocess
import sys
import time

import httpx2
import pytest
from eval_server import EvalServer, Reply, always, script

from evaluation.judging import judge as module
from evaluation.judging.cache import Cache, digest
from evaluation.judging.judge import Answer, Judge, JudgeSettings, api_key
from evaluation.judging.templates import TEMPLATES, Template

SECRET = "sk-test-0123456789abcdef"
GOOD = Reply(text="Verdict: B")


def settings(url: str, **changes) -> JudgeSettings:
    quick = JudgeSettings(url=url, model="judge", attempts=3, timeout=5.0, backoff=0.02)
    return dataclasses.replace(quick, **changes)


def ask(server: EvalServer, *, key: str | None = None, times: int = 1, **changes) -> list[Answer]:
    """All at once."""

    async def asked() -> list[Answer]:
        async with Judge(settings(server.url, **changes), key) as judge:
            return await asyncio.gather(*(judge.ask(f"question {i}") for i in range(times)))

    return asyncio.run(asked())


def test_a_request_carries_the_sampling_settings_and_the_key():
    with EvalServer(always(GOOD)) as server:
        assert ask(server, key=SECRET) == [Answer("Verdict: B", None, 100, 10, "stop")]
        ask(server, temperature=None, max_tokens=7, limit_name="max_completion_tokens")
    first, second = server.asked
    message = [{"role": "user", "content": "question 0"}]
    assert first.body == {"model": "judge", "messages": message, "temperature": 0.0, "max_tokens": 1024}
    assert second.body == {"model": "judge", "messages": message, "max_completion_tokens": 7}
    assert first.headers["authorization"] == f"Bearer {SECRET}"


PASSING = {
    "429": Reply(status=429, text="slower"),
    "429 now": Reply(status=429, text="slower", headers={"retry-after": "0"}),
    "429 nonsense": Reply(status=429, text="slower", headers={"retry-after": "soon"}),
    "500": Reply(status=500, text="oh"),
    "dropped": Reply(drop=True),
    "hang": Reply(delay=60.0),
    "drip": Reply(drip=True),
    "half of the JSON": Reply(body=b'{"choices": [{"mess'),
    "HTML": Reply(body=b"<html>busy</html>", headers={"content-type": "text/html"}),
    "no choices": Reply(body=b'{"error": {"message": "overloaded"}}'),
    "empty choices": Reply(body=b'{"choices": []}'),
    "an object as choices": Reply(body=b'{"choices": {}}'),
    "an object of choices": Reply(body=b'{"choices": {"0": {"message": {"content": "Verdict: A"}}}}'),
    "a text as choices": Reply(body=b'{"choices": "Verdict: A"}'),
    "null as a choice": Reply(body=b'{"choices": [null]}'),
    "a list as message": Reply(body=b'{"choices": [{"message": ["Verdict: A"]}]}'),
    "nested too deep": Reply(body=b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "nested deep": Reply(body=b'{"choices": [{"message": {"content": ' + b"[" * 400 + b"]" * 400 + b"}}]}"),
    "a list": Reply(body=b"[1]"),
    "null": Reply(body=b"null"),
    "a number as content": Reply(body=b'{"choices": [{"message": {"content": 3}}]}'),
}


def patience(reply: Reply) -> float:
    """Seconds: short only where nothing comes."""
    return 0.8 if reply.delay or reply.drip else 5.0


@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(reply):
    with EvalServer(script(reply, reply, GOOD)) as server:
        assert ask(server, timeout=patience(reply)) == [Answer("Verdict: B", None, 100, 10, "stop")]
        assert len(server.asked) == 3


@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
def test_what_does_not_pass_is_given_up_with_a_reason(reply):
    with EvalServer(always(reply)) as server:
        begun = time.monotonic()
        answer = ask(server, timeout=patience(reply))[0]
        assert time.monotonic() - begun < 8
        assert len(server.asked) == 3
    assert answer.text == "" and answer.error.endswith("(attempt 3 of 3)")
    wanted = {429: "HTTP 429: .*slower", 500: "HTTP 500: .*oh"}.get(reply.status)
    if reply.delay or reply.drip:
        wanted = r"no whole answer within 0\.8 s"
    elif reply.drop:
        wanted = "connection: "
    assert re.match(wanted or "no chat completion: ", answer.error), answer.error


def test_retry_after_is_waited_for_by_every_task():
    slow = Reply(status=429, headers={"retry-after": "2"})
    with EvalServer(lambda number, message: slow if number == 0 else GOOD) as server:

        async def asked() -> list[Answer]:
            async with Judge(settings(server.url), None) as judge:
                first = asyncio.create_task(judge.ask("first"))
                for _ in range(100):  # until the first was refused
                    if not judge._closed_until:
                        await asyncio.sleep(0.01)
                return [await judge.ask("second"), await first]

        assert [answer.text for answer in asyncio.run(asked())] == ["Verdict: B"] * 2
    refused, *after = (asked.at for asked in server.asked)
    assert len(after) == 2 and all(at - refused >= 2.0 for at in after)


def test_waits_without_retry_after_double():
    with EvalServer(always(Reply(status=500))) as server:
        ask(server, attempts=4, backoff=0.2)
    at = [asked.at for asked in server.asked]
    waits = [after - before for before, after in itertools.pairwise(at)]
    # between half of it and all of it, and what a request takes
    for wait, longest in zip(waits, (0.2, 0.4, 0.8), strict=True):
        assert 0.5 * longest <= wait < longest + 1.0


def test_a_wait_beyond_the_longest_ends_it():
    with EvalServer(always(Reply(status=429, headers={"retry-after": "3600"}))) as server:
        assert ask(server)[0].error.startswith("asks to wait 3600 s, more than 120; HTTP 429")
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 422])
def test_a_refusal_is_not_tried_again(status):
    with EvalServer(always(Reply(status=status, text="no such model"))) as server:
        answer = ask(server)[0]
        assert len(server.asked) == 1
    assert answer.error.startswith(f"HTTP {status}: ") and "no such model" in answer.error
    assert answer.refused == (status != 401)


@pytest.mark.parametrize(("finish", "cut"), [("length", True), ("stop", False), (None, False)])
def test_how_an_answer_ended_is_kept(finish, cut):
    with EvalServer(always(Reply(finish=finish))) as server:
        (answer,) = ask(server)
    assert (answer.finish, answer.cut) == (finish, cut)


def test_a_server_that_is_not_there_is_an_answer_too():
    with EvalServer(always(GOOD)) as server:
        pass
    gone = EvalServer(always(GOOD))
    gone.url = "http://127.0.0.1:9/v1"
    assert ask(gone)[0].error.startswith("connection: ")
    assert server.asked == []


def test_retry_after_may_be_a_date():
    def waits(value: str | None) -> float | None:
        return module._asked_wait(httpx2.Headers({} if value is None else {"retry-after": value}))

    assert waits("1.5") == 1.5
    assert 25 < waits(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 30
    assert [waits(value) for value in (None, "0", "-1", "nan", "inf", "soon", "")] == [None] * 7
    assert waits("Wed, 21 Oct 2015 07:28:00 GMT") is None


@pytest.mark.parametrize("padding", [0, 270, 290, 299])
def test_the_key_is_cut_out_of_errors_and_answers(padding):
    text = "x" * padding + f"wrong key {SECRET} given"
    for status in (401, 200):
        with EvalServer(always(Reply(status=status, text=text))) as server:
            answer = ask(server, key=SECRET, attempts=1)[0]
        assert (answer.error is None) == (status == 200)
        # nor the beginning of it, where a long text is cut
        assert SECRET[:7] not in (answer.error or "") + answer.text
        assert padding or "wrong key [key]" in (answer.error or answer.text)


def test_a_lone_surrogate_in_an_answer_becomes_a_question_mark():
    body = b'{"choices": [{"message": {"content": "\\ud800\\nVerdict: A"}}]}'
    with EvalServer(always(Reply(body=body))) as server:
        assert ask(server)[0] == Answer("?\nVerdict: A")


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("MINE", f" {SECRET}\n")
    remote, local = settings("https://api.example.com/v1"), settings("http://localhost:8000/v1")
    assert api_key("MINE", remote) == SECRET
    monkeypatch.delenv("MINE")
    assert api_key("MINE", local) is None
    with pytest.raises(ValueError, match="environment variable MINE, got none"):
        api_key("MINE", remote)
    monkeypatch.setenv("MINE", f"{SECRET} and more")
    with pytest.raises(ValueError, match="printable ASCII") as raised:
        api_key("MINE", remote)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:1/v1", True), ("http://127.0.0.1/v1", True), ("http://[::1]:8/v1", True),
        ("http://10.1.2.3/v1", True), ("http://judge/v1", True), ("http://judge.local/v1", True),
        ("https://8.8.8.8/v1", False), ("https://api.example.com/v1", False),
    ],
)  # fmt: skip
def test_local_servers_want_no_key(url, local):
    assert settings(url).local is local


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "localhost:8000"}, {"url": "ftp://host/"}, {"url": f"http://me:{SECRET}@host/v1"},
        {"url": f"http://host/v1?key={SECRET}"}, {"url": f"http://host/v1#{SECRET}"}, {"url": "http://host:abc/v1"},
        {"url": f"http://host:{SECRET}/v1"}, {"url": "http://host:65536/v1"}, {"url": "http://host:0/v1"},
        {"url": "http://[::1/v1"}, {"model": ""}, {"limit_name": "limit"}, {"temperature": -0.1},
        {"temperature": float("nan")}, {"concurrency": 0}, {"attempts": 0}, {"timeout": 0.0}, {"max_tokens": -1},
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_refused_without_showing_secrets(changes):
    with pytest.raises(ValueError, match=r"^judge: want ") as raised:
        settings(**{"url": "http://localhost/v1", **changes})
    assert SECRET not in str(raised.value)


def test_a_key_of_the_cache_depends_on_all_that_an_answer_does():
    base = settings("http://localhost/v1")
    helpful = TEMPLATES["helpful"]
    reworded = Template("helpful", helpful.text.replace("four", "five"))
    keys = [
        digest(base, helpful, "p", "x", "y"),
        digest(base, helpful, "p", "y", "x"),
        digest(base, helpful, "q", "x", "y"),
        digest(base, helpful, "p", "x2", "y"),
        digest(base, helpful, "p", "x", "y2"),
        digest(base, reworded, "p", "x", "y"),
        *(
            digest(dataclasses.replace(base, **change), helpful, "p", "x", "y")
            for change in ({"url": "http://other/v1"}, {"model": "m"}, {"temperature": 0.5}, {"max_tokens": 9})
        ),
    ]
    assert len(set(keys)) == len(keys)
    patient = dataclasses.replace(base, concurrency=3, timeout=1.0, attempts=9, backoff=2.0)
    assert digest(patient, helpful, "p", "x", "y") == keys[0]


def test_the_first_answer_stays(tmp_path):
    with Cache(tmp_path / "new" / "cache") as one, Cache(tmp_path / "new" / "cache") as other:
        assert one.get("k") is None
        assert one.put("k", Answer("1", None, 3, None)) == Answer("1", None, 3, None)
        assert other.put("k", Answer("2")) == other.get("k") == Answer("1", None, 3, None)
        with pytest.raises(ValueError, match="failure"):
            one.put("f", Answer("", "gone"))
        assert one.get("f") is None


def test_a_cache_from_before_answers_had_a_finish_is_read_and_added_to(tmp_path):
    with sqlite3.connect(tmp_path / "cache") as old:
        old.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER, "
                    "completion_tokens INTEGER)")  # fmt: skip
        old.execute("INSERT INTO answers VALUES ('k', 'Verdict: A', 1, 2)")
    old.close()
    for _ in range(2):
        with Cache(tmp_path / "cache") as cache:
            assert cache.get("k") == Answer("Verdict: A", None, 1, 2)
            assert cache.put("new", Answer("so", finish="length")).cut


def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "cache"
    file.write_text("these are my notes " * 100)
    with pytest.raises(ValueError, match="want an SQLite file"):
        Cache(file)
    assert file.read_text().startswith("these are my notes")


RACE = """
import json, sys
from pathlib import Path
from evaluation.judging.cache import Cache
from evaluation.judging.judge import Answer
with Cache(Path(sys.argv[1])) as cache:
    print(json.dumps([cache.put(str(i), Answer(sys.argv[2])).text for i in range(400)]))
"""


def test_processes_that_race_get_the_same_answers(tmp_path):
    file = tmp_path / "cache"
    racing = [subprocess.Popen([sys.executable, "-c", RACE, str(file), name], stdout=subprocess.PIPE) for name in "abc"]
    got = [json.loads(process.communicate(timeout=60)[0]) for process in racing]
    assert got[0] == got[1] == got[2] and len(got[0]) == 400
    assert sqlite3.connect(file).execute("SELECT count(*) FROM answers").fetchone() == (400,)
    assert sqlite3.connect(file).execute("PRAGMA integrity_check").fetchone() == ("ok",)
