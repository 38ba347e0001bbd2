"""Files of responses: what is read, what is refused by file and line, and that a line is whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from evaluation import files
from evaluation.files import check_outputs, cut, names_of, write_rows
from evaluation.responses import Response, append, id_of, read, read_begun, write

CHAT = [{"role": "user", "content": "hi"}]
FULL = Response(
    prompt=CHAT, response="yo", prompt_id="p1", sample=3, model="m", seed=7, finish="stop", tokens=2,
    sampling={"top_p": 0.5},
)  # fmt: skip


def write_text(folder, text):
    path = folder / "made.jsonl"
    path.write_bytes(text.encode())
    return path


def test_what_is_written_is_read(tmp_path):
    rows = [FULL, Response(prompt="line\n\u2028 é 😀", response="")]
    write(tmp_path / "a.jsonl", rows)
    append(tmp_path / "b.jsonl", rows[:1])
    append(tmp_path / "b.jsonl", rows[1:])
    assert read(tmp_path / "a.jsonl") == rows == read(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_the_contract_of_a_line(tmp_path):
    append(tmp_path / "a.jsonl", [FULL])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {
        "prompt": CHAT, "response": "yo", "prompt_id": "p1", "sample": 3, "model": "m", "seed": 7, "finish": "stop",
        "tokens": 2, "sampling": {"top_p": 0.5},
    }  # fmt: skip


def test_a_line_has_the_tools_and_template_arguments_of_its_row_where_there_are_any(tmp_path):
    row = dataclasses.replace(FULL, tools=[{"name": "f"}], template_args={"mood": 1})
    append(tmp_path / "a.jsonl", [row])
    line = json.loads((tmp_path / "a.jsonl").read_text())
    assert (line["tools"], line["chat_template_kwargs"]) == ('[{"name": "f"}]', '{"mood": 1}')
    assert read(tmp_path / "a.jsonl") == [row]
    spelt = {**line, "tools": row.tools, "chat_template_kwargs": row.template_args}
    assert read(write_text(tmp_path, json.dumps(spelt))) == [row]
    with pytest.raises(ValueError, match="line 1: want tools a list or one as JSON, got 5"):
        read(write_text(tmp_path, json.dumps({**line, "tools": 5})))


def test_an_output_is_no_input(tmp_path):
    given = write_text(tmp_path, "mine")
    (tmp_path / "link").symlink_to(given)
    (tmp_path / "data").mkdir()
    check_outputs([tmp_path / "a", tmp_path / "b"], [given, tmp_path / "absent"])
    for outputs, inputs in (
        ([tmp_path / "link"], [given]), ([tmp_path / "data" / ".." / "made.jsonl"], [given]),
        ([tmp_path / "data" / "deep" / "out"], [tmp_path / "data"]), ([tmp_path / "a", tmp_path / "a"], []),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="want an output that is neither an input nor another output"):
            check_outputs(outputs, inputs)
    with pytest.raises(ValueError, match="want a file to write, got a folder"):
        check_outputs([tmp_path / "data"], [])


def test_names_tell_files_apart(tmp_path):
    one, other, third = tmp_path / "x" / "a.jsonl", tmp_path / "y" / "a.jsonl", tmp_path / "y" / "b.jsonl"
    assert names_of([one, third]) == ["a", "b"]
    assert names_of([one, other, third]) == ["x-a", "y-a", "y-b"]
    assert names_of([one, one]) is None


def test_a_prompt_is_known_by_its_canonical_json():
    assert id_of("hi") == "b49177e05868b7af"
    assert (
        id_of([{"role": "user", "content": "hi"}]) == id_of([{"content": "hi", "role": "user"}]) == "4e79873118cd9be7"
    )


def test_prompt_and_response_alone_are_enough_and_samples_are_counted(tmp_path):
    rows = [{"prompt": "a", "response": "1"}, {"prompt": "b", "response": "2", "score": 5},
            {"prompt": "a", "response": [{"role": "assistant", "content": "3"}]}]  # fmt: skip
    found = read(write_text(tmp_path, "\n".join(map(json.dumps, rows))))
    assert [(row.prompt_id, row.sample, row.response) for row in found] == [
        (id_of("a"), 0, "1"), (id_of("b"), 0, "2"), (id_of("a"), 1, "3"),
    ]  # fmt: skip
    assert found[0].finish is None and found[0].tokens is None and found[0].seed is None and found[0].sampling == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "line 2: want a JSON object, got ''"),
        ("[1]", r"line 2: want a JSON object, got '\[1\]'"),
        ('{"prompt": "a"', 'line 2: want a JSON object, got \'{"prompt": "a"\''),
        ('{"response": "a"}', "line 2: want a column prompt, got response"),
        ('{"prompt": "a", "response": null}', "line 2: want prompt and response, got no value in response"),
        ('{"prompt": 5, "response": "a"}', "line 2: want prompt a text or a list of messages, got 5"),
        (
            '{"prompt": "a", "response": [{"role": "user", "content": "x"}]}',
            "line 2: want a response of text or of one",
        ),
        ('{"prompt": "a", "response": "b", "sample": "0"}', "line 2: want sample of type int, got '0'"),
        ('{"prompt": "a", "response": "b", "tokens": true}', "line 2: want tokens of type int, got True"),
        ('{"prompt": "a", "response": "b", "sample": -1}', "line 2: want sample and tokens >= 0, got -1"),
        ('{"prompt": "a", "response": "b", "finish": "eos"}', "line 2: want finish one of stop, length, got 'eos'"),
        ('{"prompt": "x", "response": "b", "sample": 0}', r"line 2: want each sample of a prompt once.*line 1 has"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = write_text(tmp_path, '{"prompt": "x", "response": "y"}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"made.jsonl {said}"):
        read(path)


def test_an_empty_file_and_one_that_is_not_text(tmp_path):
    with pytest.raises(ValueError, match="want a response a line, got an empty file"):
        read(write_text(tmp_path, ""))
    (tmp_path / "made.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="want UTF-8"):
        read(tmp_path / "made.jsonl")


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_an_append_that_fails_leaves_nothing(tmp_path, monkeypatch, step):
    path = tmp_path / "made.jsonl"
    append(path, [FULL])
    before, real = path.read_bytes(), getattr(os, step)

    def fails(handle, *content):
        if content:
            real(handle, content[0][:10])
        raise OSError("no space left")

    monkeypatch.setattr(files.os, step, fails)
    with pytest.raises(OSError, match="no space left"):
        append(path, [Response(prompt="other", response="x" * 100)])
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="no space left"):
        write_rows(path, [{"a": 1}])
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["made.jsonl"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(files.os, "write", lambda handle, content: real(handle, content[:7]))
    append(tmp_path / "made.jsonl", [FULL])
    assert read(tmp_path / "made.jsonl") == [FULL]


def test_places_that_a_kill_may_cut_a_file_at(tmp_path):
    path = tmp_path / "made.jsonl"
    rows = [FULL, Response(prompt="é", response="b", sampling={})]
    write(path, rows)
    content = path.read_bytes()
    first, size_of_all = content.index(b"\n") + 1, len(content)
    near = {end + step for end in (first, size_of_all) for step in (-2, -1, 0)}
    for size in sorted({*range(0, size_of_all, 11), *near, 1, first + 1}):
        path.write_bytes(content[:size])
        found, torn = read_begun(path)
        cut(path, torn)
        left = rows[len(found) :]
        assert found == rows[: len(found)] and len(found) == (size >= first - 1) + (size >= size_of_all - 1)
        append(path, left)
        assert path.read_bytes() == content or (not left and path.read_bytes() == content[:size])


def test_what_is_no_file_of_responses_is_not_taken_for_a_torn_line(tmp_path):
    for text in ("notes", '{"prompt": "x", "response": "y"}\nnotes\n', "a,b\n1,2"):
        path = write_text(tmp_path, text)
        with pytest.raises(ValueError, match=r"made.jsonl line \d: want a JSON object"):
            read_begun(path)
        assert path.read_text() == text
