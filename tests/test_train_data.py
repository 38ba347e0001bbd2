"""Preference data: every schema by hand, what is scored and cut, what is dropped and counted, what is found again."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

import train.data.tokens
from toy.tokenizer import TEMPLATE, tokenizer
from train.data import FORMATS, STAGES, Dropped, Report, Source, TokenOptions, decoded_example, prepare, store
from train.data.rows import Row
from train.data.schemas import Text, Wanted, examples, find_format
from train.data.sources import read, weighted_rows
from train.data.tokens import Tokeniser

ROOT = Path(__file__).parent.parent
PAIR = {"prompt": "hi ", "chosen": "yo", "rejected": "no"}


def user(said):
    return {"role": "user", "content": said}


def answer(said):
    return {"role": "assistant", "content": said}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make(folder, rows, stage="preference", words=None, options=None, weight=1.0, **asked):
    source = Source(path=write(folder / "rows.jsonl", rows), weight=weight)
    return prepare([source], stage, words or tokenizer(), options or TokenOptions(), folder / "made", **asked)


def names(ids):
    return "".join(tokenizer().convert_ids_to_tokens(ids))


def shown(prepared):
    """Each example as prompt|response|response, a token by its name."""
    return ["|".join(map(names, (row["prompt"], *row["responses"]))) for row in prepared.dataset]


def texts(row, stage="preference", name="auto", **asked):
    place = Row("rows.jsonl row 7", row)
    return examples(place, find_format(place, name, stage), Wanted(stage=stage, **asked))


def group(row, stage="preference", **asked):
    """The only example of a row, as prompt and responses."""
    (text,) = texts(row, stage, **asked)
    return text.prompt, text.responses


def plain(prompt, *responses):
    return Text(prompt, list(responses), {}, {}, None, {})


# schemas: rows to text


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("hi")], "chosen": [answer("a")], "rejected": [answer("b")]},
        {"prompt": [user("hi")], "chosen": [user("hi"), answer("a")], "rejected": [user("hi"), answer("b")]},
        {"prompt": "hi", "chosen": [user("hi"), answer("a")], "rejected": [user("hi"), answer("b")]},
        {"chosen": [user("hi"), answer("a")], "rejected": [user("hi"), answer("b")]},
        {"prompt": [user("hi")], "chosen": "a", "rejected": "b"},
        {"prompt": "hi", "chosen": [answer("a")], "rejected": [answer("b")]},
        {"prompt": "hi", "responses": [[answer("b")], [answer("a")]], "scores": [0, 1]},
        {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}},
        {"instruction": "hi", "chosen": "a", "rejected": "b"},
        {"instruction": "hi", "input": "", "output": ["a", "b"]},
        {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b"},
        {"chosen": " Human: hi\n\nAssistant: a", "rejected": "Human: hi\n\nAssistant:b "},
    ],
)  # fmt: skip
def test_the_schemas_of_a_conversational_pair(row):
    assert group(row) == ([user("hi")], [[answer("a")], [answer("b")]])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses"),
    [
        ("to be or not", "to be so", "to be", [" or not", " so"]),
        ("to bend", "to bell", "to", [" bend", " bell"]),
        ("to be", "to be so", "to", [" be", " be so"]),
        ("one", "two", "", ["one", "two"]),
        ("a  b", "a  c", "a", ["  b", "  c"]),
    ],
)
def test_the_prompt_of_plain_texts_without_one(chosen, rejected, prompt, responses):
    assert group({"chosen": chosen, "rejected": rejected}) == (prompt, responses)


def test_a_prompt_that_the_assistant_opens():
    prompt = [answer("x"), user("hi")]
    row = {"prompt": prompt, "chosen": [*prompt, answer("a")], "rejected": [*prompt, answer("b")]}
    assert group(row) == (prompt, [[answer("a")], [answer("b")]])


def test_a_given_plain_prompt_is_kept():
    assert group({"prompt": "hi ", "chosen": "hi a", "rejected": "hi b"}) == ("hi ", ["hi a", "hi b"])


def test_hh_with_several_turns():
    shared = "\n\nHuman: a\n\nAssistant: b\n\nline\n\nHuman: c"
    row = {"chosen": f"{shared}\n\nAssistant: d", "rejected": f"{shared}\n\nAssistant: e"}
    assert group(row) == ([user("a"), answer("b\n\nline"), user("c")], [[answer("d")], [answer("e")]])
    other = "\n\nHuman: a\n\nAssistant: x\n\nHuman: c\n\nAssistant: e"
    assert texts({**row, "rejected": other}) == Dropped("transcripts differ before the last turn")
    assert texts({**row, "rejected": shared}) == Dropped("a response does not begin with the assistant")


def test_sharegpt_with_system_and_a_tool():
    turns = [("system", "s"), ("human", "q"), ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
             ("observation", "o")]  # fmt: skip
    row = {"conversations": [{"from": who, "value": said} for who, said in turns],
           "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}  # fmt: skip
    call = {"role": "assistant", "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}  # fmt: skip
    assert group(row)[0] == [
        {"role": "system", "content": "s"}, user("q"), call, {"role": "tool", "content": "o"},
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"rows.jsonl row 7: want a turn from one of human.*got 'me'"):
        texts({**row, "conversations": [{"from": "me", "value": "q"}]})
    with pytest.raises(ValueError, match="row 7: want function_call as JSON"):
        texts({**row, "conversations": [{"from": "function_call", "value": "f(1)"}]})


def test_alpaca_with_history_system_and_input():
    row = {"instruction": "i", "input": "x", "system": "s", "history": [["q", "a"]], "chosen": "c", "rejected": "r"}
    prompt = [{"role": "system", "content": "s"}, user("q"), answer("a"), user("i\nx")]
    assert group(row) == (prompt, [[answer("c")], [answer("r")]])
    assert group({"instruction": "i", "input": None, "output": "o"}, "sft") == ([user("i")], [[answer("o")]])


def test_ultrafeedback_and_its_gap():
    row = {"prompt": "q", "chosen": [user("q"), answer("a")], "rejected": [user("q"), answer("b")],
           "score_chosen": 8.5, "score_rejected": 6.0}  # fmt: skip
    (text,) = texts(row, columns=("gap",))
    assert text == Text([user("q")], [[answer("a")], [answer("b")]], {"gap": 2.5}, {}, None, {})
    assert texts(row)[0].columns == {}
    assert texts({**row, "prompt": "other"}) == Dropped("the prompt is not in the conversation")


def test_scored_responses_as_a_pair():
    row = {"query": "q ", "samples": ["a", "b", "c"], "scores": [0.5, 2.0, -1.0]}
    (text,) = texts(row, columns=("gap",), sequence_columns=("reward",))
    assert (text.prompt, text.responses) == ("q ", ["b", "c"])
    assert text.columns == {"gap": 3.0} and text.sequence_columns == {"reward": [2.0, -1.0]}
    assert texts({**row, "scores": [1, 1, 1]}) == Dropped("tied scores")
    assert texts({"text": "q", "completions": ["a"], "scores": [1]}) == Dropped("fewer than two responses")
    with pytest.raises(ValueError, match="row 7: want scores a list of 3 numbers, got"):
        texts({**row, "scores": [1, 2]})


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"prompt": "p ", "completion": "c"}, "p ", "c"),
        ({"prompt": [user("p")], "completion": [answer("c")]}, [user("p")], [answer("c")]),
        ({"messages": [user("p"), answer("b"), user("q"), answer("c")]}, [user("p"), answer("b"), user("q")],
         [answer("c")]),
        ({"instruction": "p", "input": "x", "output": "c"}, [user("p\nx")], [answer("c")]),
    ],
)  # fmt: skip
def test_the_schemas_of_sft(row, prompt, response):
    assert group(row, "sft") == (prompt, [response])


def test_imitation_of_pairs_reads_the_chosen_response():
    assert group(PAIR, "sft") == ("hi ", ["yo"])
    transcripts = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    assert group(transcripts, "sft") == ([user("a")], [[answer("b")]])
    assert group({"prompt": "p ", "responses": ["x", "y", "z"], "scores": [1, 3, 2]}, "sft") == ("p ", ["y"])


def test_what_is_marked_undesirable_is_not_imitated():
    row = {"prompt": "p ", "completion": "x"}
    assert texts({**row, "label": False}, "sft") == Dropped("marked undesirable")
    assert group({**row, "label": True}, "sft") == group(row, "sft") == ("p ", ["x"])


def test_unpaired_from_labels_and_from_pairs():
    for label, value in ((True, 1.0), (0, 0.0), ("False", 0.0)):
        (text,) = texts({"prompt": "p", "completion": "c", "label": label}, "unpaired")
        assert (text.responses, text.columns) == (["c"], {"desirable": value})
    row = {**PAIR, "scores": [0.25, 0.5]}
    made = texts(row, "unpaired", columns=("desirable",), sequence_columns=("reward",))
    assert [(text.responses, text.columns, text.sequence_columns) for text in made] == [
        (["yo"], {"desirable": 1.0}, {"reward": [0.25]}), (["no"], {"desirable": 0.0}, {"reward": [0.5]}),
    ]  # fmt: skip
    assert texts({**PAIR, "rejected": "yo"}, "unpaired") == Dropped("identical responses")
    with pytest.raises(ValueError, match="row 7: want label true or false, 1 or 0, got 2"):
        texts({"prompt": "p", "completion": "c", "label": 2}, "unpaired")
    (text,) = texts({"prompt": "p", "completion": "c", "up": 1}, "unpaired", renamed={"desirable": "up"})
    assert text.columns == {"desirable": 1.0}


@pytest.mark.parametrize(("column", "asked"), [("rewards", "reward"), ("scores", "gain"), ("gains", "gain")])
def test_lists_with_a_number_a_response(column, asked):
    row = {"prompt": "p ", "responses": ["a", "b", "c"], column: [1, 2, 3]}
    (text,) = texts(row, "lists", sequence_columns=(asked,))
    assert text.responses == ["a", "b", "c"] and text.sequence_columns == {asked: [1.0, 2.0, 3.0]}
    with pytest.raises(ValueError, match="row 7: want at least 2 responses, got 1"):
        texts({"prompt": "p", "responses": ["a"], column: [1]}, "lists")


@pytest.mark.parametrize(
    ("row", "made"),
    [
        ({"prompt": "p", "response": "a"}, [(["a"], 1.0)]),
        ({"prompt": "p", "completion": "a", "weight": 0.5}, [(["a"], 0.5)]),
        ({"prompt": "p", "responses": ["a", "b"], "weight": 3}, [(["a"], 3.0), (["b"], 3.0)]),
        ({"prompt": "p", "responses": ["a", "b"], "weight": [3, 4]}, [(["a"], 3.0), (["b"], 4.0)]),
    ],
)
def test_anchors(row, made):
    assert [(text.responses, text.columns) for text in texts(row, "anchors")] == [
        (responses, {"weight": weight}) for responses, weight in made
    ]


def test_columns_missing_renamed_and_not_finite():
    row = {**PAIR, "margin": 0.5}
    assert texts(row, columns=("gap",), renamed={"gap": "margin"})[0].columns == {"gap": 0.5}
    with pytest.raises(ValueError, match="row 7: want a column gap, got prompt, chosen, rejected, margin"):
        texts(row, columns=("gap",))
    with pytest.raises(ValueError, match="row 7: want a column other, got prompt"):
        texts(row, columns=("gap",), renamed={"gap": "other"})
    with pytest.raises(ValueError, match="row 7: want a column reward or rewards or scores or gains, got prompt"):
        texts(row, sequence_columns=("reward",))
    for bad in (math.nan, math.inf, None, "much", True):
        with pytest.raises(ValueError, match="row 7: want margin a finite number, got"):
            texts({**row, "margin": bad}, columns=("gap",), renamed={"gap": "margin"})
    with pytest.raises(ValueError, match="renamed: want some of gap, got reward"):
        texts(row, columns=("gap",), renamed={"reward": "margin"})
    with pytest.raises(ValueError, match="columns: want different names, none of id, prompt, responses, got 'prompt'"):
        texts(row, columns=("prompt",))


def test_what_is_no_known_schema():
    with pytest.raises(ValueError, match=r"format of preference: .*hh \(.*; got question \(str\), answer \(int\)"):
        texts({"question": "q", "answer": 1})
    with pytest.raises(ValueError, match=r"row 7: want a format of lists, one of scored, .*got 'pairs'"):
        texts(PAIR, "lists", name="pairs")
    with pytest.raises(ValueError, match="stage: want one of sft, preference, unpaired, lists, anchors, got 'dpo'"):
        Wanted(stage="dpo")
    with pytest.raises(ValueError, match="row 7: want chosen a text or a list of messages, got 5"):
        texts({**PAIR, "chosen": 5}, name="pairs")
    assert texts({**PAIR, "chosen": None}, name="pairs") == Dropped("no value in chosen")
    assert {name for known in STAGES.values() for name in known} == set(FORMATS)


# tokens


def test_a_plain_response_ends_with_eos_once():
    tokenise = Tokeniser(tokenizer(), TokenOptions())
    made = tokenise(plain("hi ", "yo", "no<eos>"))
    assert names(made.prompt) == "hi " and list(map(names, made.responses)) == ["yo<eos>", "no<eos>"]
    assert not made.truncated and not made.unaligned


def test_eos_that_the_tokenizer_appends_is_not_in_the_prompt():
    words = tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    made = Tokeniser(words, TokenOptions())(plain("hi ", "yo"))
    assert names(made.prompt) == "hi " and list(map(names, made.responses)) == ["yo<eos>"] and not made.unaligned


def test_a_conversation_is_what_the_template_writes(tmp_path):
    chat = [user("hi"), answer("a"), user("so")]
    made = make(tmp_path, [{"prompt": chat, "chosen": [answer("yo")], "rejected": [answer("no")]}])
    assert shown(made) == ["<user>hi<assistant>a<eos><user>so<assistant>|yo<eos>|no<eos>"]
    template = TEMPLATE.replace("<eos>", "")
    words = tokenizer()
    words.chat_template = template
    assert names(Tokeniser(words, TokenOptions())(plain([user("hi")], [answer("yo")])).responses[0]) == "yo"


@pytest.mark.parametrize(
    ("mode", "max_length", "made"),
    [  # "hello " are 6 tokens, "abc" and "d" 4 and 2 with eos
        ("keep_start", 10, ["hello |abc<eos>|d<eos>"]),
        ("keep_start", 9, ["hello |abc|d<eos>"]),
        ("keep_start", 7, ["hello |a|d"]),
        ("keep_start", 6, "prompt fills max_length"),
        ("keep_end", 10, ["hello |abc<eos>|d<eos>"]),
        ("keep_end", 9, ["ello |abc<eos>|d<eos>"]),
        ("keep_end", 5, [" |abc<eos>|d<eos>"]),
        ("keep_end", 4, [" |abc|d<eos>"]),
        ("keep_end", 2, [" |a|d"]),
        ("drop", 10, ["hello |abc<eos>|d<eos>"]),
        ("drop", 9, "longer than max_length"),
    ],
)
def test_truncation_at_its_boundaries(mode, max_length, made):
    text = plain("hello ", "abc", "d")
    out = Tokeniser(tokenizer(), TokenOptions(max_length=max_length, truncation_mode=mode))(text)
    if isinstance(made, str):
        assert out == Dropped(made)
        return
    assert ["|".join(map(names, (out.prompt, *out.responses)))] == made
    assert out.truncated == (max_length < 10)


def test_every_cause_of_a_drop_is_counted(tmp_path):
    rows = [
        {**PAIR, "rejected": "n"},
        {**PAIR, "chosen": " "},
        {**PAIR, "rejected": ""},
        {**PAIR, "rejected": "yo"},
        {**PAIR, "chosen": "abcdef", "rejected": "abcdeg"},  # the same once they are cut
        {**PAIR, "prompt": ""},
        {**PAIR, "prompt": "longer than that "},
        {**PAIR, "chosen": None},
    ]
    report = make(tmp_path, rows, options=TokenOptions(max_length=7)).report
    assert report.dropped == {
        "empty response": 2, "identical responses": 2, "empty prompt and the tokenizer has no bos token": 1,
        "prompt fills max_length": 1, "no value in chosen": 1,
    }  # fmt: skip
    assert report.rows == {"rows.jsonl": 8} and report.kept == 1 and report.warnings == {}
    assert (report.prompt_tokens, report.response_tokens, report.longest) == (3, 5, 6)
    assert "dropped 2: empty response" in report.lines() and Report.from_json(report.to_json()) == report
    with pytest.raises(ValueError, match=r"want at least one example, got none \(1 dropped: empty response\)"):
        make(tmp_path, rows[1:2])
    assert [path.name for path in (tmp_path / "made").iterdir() if path.name.startswith(".")] == []


def test_an_empty_prompt_is_bos_where_there_is_one():
    words = tokenizer()
    words.bos_token = "<unk>"
    made = Tokeniser(words, TokenOptions())(plain("", "yo"))
    assert names(made.prompt) == "<unk>" and names(made.responses[0]) == "yo<eos>"
    assert Tokeniser(words, TokenOptions())(plain([], [answer("a")])) == Dropped("conversation without a prompt")


def test_a_template_that_strips_is_a_warning_and_the_prompt_is_what_all_share(tmp_path):
    words = tokenizer()
    words.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content | trim }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant> 12{% endif %}"
    )
    row = {"prompt": [user("q")], "chosen": [answer("1a")], "rejected": [answer("12b")]}
    made = make(tmp_path, [row], words=words)
    assert shown(made) == ["<user> q<assistant> 1|a|2b"]
    assert made.report.warnings == {"prompt tokens are not a prefix": 1}


def test_plain_tokens_that_grow_together_over_the_end_of_the_prompt():
    known = {token: i for i, token in enumerate(["<eos>", "a", "b", "c", "bc"])}
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(known, [("b", "c")])), eos_token="<eos>")
    made = Tokeniser(words, TokenOptions())(plain("ab", "c", "a"))  # a b, a bc, a b a
    assert made == ([1], [[4, 0], [2, 1, 0]], False, True), "both responses follow the one prompt that they share"


def test_truncation_is_a_warning(tmp_path):
    made = make(tmp_path, [PAIR, {**PAIR, "chosen": "abcdef"}], options=TokenOptions(max_length=6))
    assert shown(made) == ["hi |yo<eos>|no<eos>", "hi |abc|no<eos>"]
    assert made.report.warnings == {"truncated to max_length": 1}


def test_tools_and_template_args_reach_the_template(tmp_path):
    words = tokenizer()
    words.chat_template = "{{ tools[0].function.name if tools }}{{ mode }}{{ level }}" + TEMPLATE
    tool = {"type": "function", "function": {"name": "f", "parameters": None}}
    row = {"prompt": [user("q")], "chosen": [answer("a")], "rejected": [answer("b")], "tools": json.dumps([tool]),
           "chat_template_kwargs": {"mode": "x"}}  # fmt: skip
    options = TokenOptions(chat_template_args={"mode": "y", "level": "3"})
    made = make(tmp_path, [row, {**row, "tools": None, "chat_template_kwargs": {}}], words=words, options=options)
    assert shown(made) == ["fx3<user>q<assistant>|a<eos>|b<eos>", "y3<user>q<assistant>|a<eos>|b<eos>"]
    assert texts({**row, "tools": [tool]})[0].tools == [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(ValueError, match="chat_template_args: want names that the chat template reads, got tokenize"):
        TokenOptions(chat_template_args={"tokenize": False})
    with pytest.raises(ValueError, match="row 7: want tools and chat_template_kwargs beside messages only"):
        texts({**PAIR, "tools": [tool]})


def test_a_tokenizer_that_lacks_what_is_wanted(tmp_path):
    words = tokenizer()
    words.eos_token = None
    with pytest.raises(ValueError, match=r"rows.jsonl row 0: tokenizer: want an eos token"):
        make(tmp_path, [PAIR], words=words)
    words.chat_template = None
    with pytest.raises(ValueError, match=r"rows.jsonl row 0: tokenizer: want a chat template.*pass chat_template"):
        make(tmp_path, [{"messages": [user("a"), answer("b")]}], "sft", words=words)
    for bad in ({"max_length": 1}, {"truncation_mode": "middle"}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: want"):
            TokenOptions(**bad)


# sources


def test_files_of_every_kind_and_folders(tmp_path):
    rows = [{**PAIR, "chosen": "01", "gap": 1.5}, {**PAIR, "chosen": "007", "rejected": "NA", "gap": -2}]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    table = "prompt,chosen,rejected,gap\nhi ,01,no,1.5\nhi ,007,NA,-2\n"
    (tmp_path / "a.csv").write_text(table)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.encode()))
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "one.jsonl", rows[:1])
    write(folder / "two.jsonl", rows[1:])
    for name in ("a.jsonl", "a.json", "a.parquet", "a.csv", "a.csv.gz", "folder"):
        source = Source(path=str(tmp_path / name))
        found = read(source, tmp_path / "cache")
        assert found["rejected"][:] == ["no", "NA"] and found["chosen"][:] == ["01", "007"], name
        made = prepare([source], "preference", tokenizer(), TokenOptions(), tmp_path / "made", columns=("gap",))
        assert made.dataset["gap"][:] == [1.5, -2.0] and made.dataset["id"][:] == [f"{name}:0", f"{name}:1"]


def test_a_folder_with_splits(tmp_path):
    write(tmp_path / "train.jsonl", [PAIR, PAIR])
    write(tmp_path / "test.jsonl", [PAIR])
    assert [len(read(Source(path=str(tmp_path), split=split))) for split in ("train", "test", "train[:1]")] == [2, 1, 1]
    write(tmp_path / "other.jsonl", [PAIR])
    with pytest.raises(ValueError, match=r"want each file in a split and all of one kind.*beside them other.jsonl"):
        read(Source(path=str(tmp_path)))


def test_a_name_on_the_hub(monkeypatch):
    asked = {}

    def load_dataset(*names, **options):
        asked.update(names=names, **options)
        return datasets.Dataset.from_list([PAIR] * 5)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read(Source(path="some/pairs", name="small", split="test", revision="v1", limit=3))
    assert len(found) == 3
    assert asked == {"names": ("some/pairs", "small"), "split": "test", "revision": "v1"}


def test_what_is_not_there_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("looked for on the hub"))
    for path in (str(tmp_path / "none"), "./none", "none.jsonl", "data/none.csv.gz"):
        with pytest.raises(FileNotFoundError, match="want a file or a folder, got a path that does not exist"):
            read(Source(path=path))
    with pytest.raises(ValueError, match="want name and revision with the hub only"):
        read(Source(path=str(tmp_path), name="small"))


def test_files_without_rows_or_of_no_kind(tmp_path):
    for name, text in (("a.jsonl", ""), ("b.json", "[]"), ("c.csv", "prompt,chosen\n"), ("d.csv", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}: want rows of split train, got"):
            read(Source(path=str(tmp_path / name)), tmp_path / "cache")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt')
    with pytest.raises(ValueError, match=r"bad.jsonl: want rows of split train, got: JSON parse error"):
        read(Source(path=str(tmp_path / "bad.jsonl")), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"want rows of split test, got: Unknown split"):
        read(Source(path=write(tmp_path / "e.jsonl", [PAIR]), split="test"), tmp_path / "cache")
    (tmp_path / "f.txt").write_text("a")
    with pytest.raises(ValueError, match=r"want files of one kind, ending in .jsonl, .*got train: f.txt"):
        read(Source(path=str(tmp_path / "f.txt")))


def test_weights_and_limits(tmp_path):
    assert weighted_rows(3, 1.0, 0) == [0, 1, 2] and weighted_rows(2, 2.0, 0) == [0, 1, 0, 1]
    half = weighted_rows(100, 0.5, 7)
    assert len(set(half)) == 50 and half == sorted(half) == weighted_rows(100, 0.5, 7) != weighted_rows(100, 0.5, 8)
    assert weighted_rows(100, 1.5, 7) == [*range(100), *half]
    with pytest.raises(ValueError, match=r"weight: want one that leaves a row of 3, got 0.1"):
        weighted_rows(3, 0.1, 0)
    source = Source(
        path=write(tmp_path / "a.jsonl", [{**PAIR, "prompt": letter} for letter in "abc"]), limit=2, weight=2
    )
    made = prepare([source, source], "preference", tokenizer(), TokenOptions(), tmp_path / "made")
    assert made.dataset["id"][:] == [
        f"a.jsonl:{row}{'' if n == 1 else f'#{n}'}" for n in (1, 2, 3, 4) for row in (0, 1)
    ]
    assert [names(ids) for ids in made.dataset["prompt"]] == ["a", "b"] * 4 and made.report.rows == {"a.jsonl": 8}
    for bad in ({"limit": 0}, {"weight": 0.0}, {"weight": math.inf}, {"format": "pair"}):
        with pytest.raises(ValueError, match=f"source a: want .*{next(iter(bad))}"):
            Source(path="a", **bad)


# prepared data


def test_the_columns_and_ids_of_each_stage(tmp_path):
    rows = [{"prompt": "p ", "responses": ["a", "b", "c"], "rewards": [1, 2, 3]}]
    made = make(tmp_path, rows, "lists", sequence_columns=("reward",))
    assert made.roles == 3 and made.dataset.column_names == ["id", "prompt", "responses", "reward"]
    assert made.dataset[0]["reward"] == [1.0, 2.0, 3.0] and made.dataset.features["prompt"].feature.dtype == "int32"
    made = make(tmp_path, [PAIR], "unpaired", columns=("desirable",))
    assert made.roles == 1 and made.dataset["id"][:] == ["rows.jsonl:0.0", "rows.jsonl:0.1"]
    assert shown(made) == ["hi |yo<eos>", "hi |no<eos>"] and made.dataset["desirable"][:] == [1.0, 0.0]
    made = make(tmp_path, [{"prompt": "p", "responses": ["a", "b"]}], "anchors")
    assert made.roles == 1 and made.dataset["weight"][:] == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"rows.jsonl:1: want as many responses in every row, 3, got 2"):
        make(tmp_path, [*rows, {**rows[0], "responses": ["a", "b"], "rewards": [1, 2]}], "lists")


def test_a_missing_column_stops_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(train.data.tokens.Tokeniser, "__call__", lambda *a: pytest.fail("tokenised"))
    good = Source(path=write(tmp_path / "good.jsonl", [{**PAIR, "gap": 1}]))
    bad = Source(path=write(tmp_path / "bad.jsonl", [PAIR]))
    with pytest.raises(ValueError, match=r"bad.jsonl row 0: want a column gap, got prompt, chosen, rejected"):
        prepare([good, bad], "preference", tokenizer(), TokenOptions(), tmp_path / "made", columns=("gap",))


def test_the_second_time_it_is_found(tmp_path, monkeypatch):
    first = make(tmp_path, [PAIR], columns=())
    words = tokenizer()
    words(["a", "ab"], padding=True, truncation=True, max_length=1)  # leaves its settings in the tokenizer
    with monkeypatch.context() as patch:
        patch.setattr(train.data.tokens.Tokeniser, "__call__", lambda *a: pytest.fail("tokenised again"))
        second = make(tmp_path, [PAIR], words=words)
    assert second.fingerprint == first.fingerprint and second.report == first.report and second.roles == 2
    assert second.dataset.cache_files == first.dataset.cache_files and second.dataset[:] == first.dataset[:]


def test_what_changes_the_examples_makes_them_anew(tmp_path):
    words = tokenizer()
    words.chat_template = TEMPLATE + " "
    made = [
        make(tmp_path, [PAIR]),
        make(tmp_path, [{**PAIR, "chosen": "ya"}]),
        make(tmp_path, [PAIR], options=TokenOptions(max_length=5)),
        make(tmp_path, [PAIR], words=words),
        make(tmp_path, [PAIR], seed=1),
    ]
    assert len({part.dataset.cache_files[0]["filename"] for part in made}) == 5
    assert len({part.fingerprint for part in made}) == 3, "of the examples, not of how they came to be"


def test_another_process_finds_it_and_has_the_same_fingerprint(tmp_path):
    code = (
        "import sys; from pathlib import Path; from toy.tokenizer import tokenizer; from train.data import *;"
        "made = prepare([Source(path=sys.argv[1])], 'preference', tokenizer(), TokenOptions(), Path(sys.argv[2]));"
        "print(made.fingerprint, made.dataset.cache_files[0]['filename'])"
    )
    here = make(tmp_path, [PAIR] * 3)
    command = [sys.executable, "-c", code, str(tmp_path / "rows.jsonl"), str(tmp_path / "made")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [here.fingerprint, here.dataset.cache_files[0]["filename"]], done.stderr


def test_of_two_that_write_at_once_the_first_ones_stays(tmp_path, monkeypatch):
    first = make(tmp_path, [PAIR])
    written = Path(first.dataset.cache_files[0]["filename"]).stat().st_ino
    looks = iter([lambda place: None])  # the second has looked before the first was done
    monkeypatch.setattr(sys.modules["train.data.prepare"], "find", lambda place: next(looks, store.find)(place))
    skipped = make(tmp_path, [PAIR])
    assert skipped.fingerprint == first.fingerprint
    assert Path(skipped.dataset.cache_files[0]["filename"]).stat().st_ino == written
    assert len(list((tmp_path / "made").iterdir())) == 1


def test_what_was_half_written_is_not_found(tmp_path):
    """A row that fails after others were written leaves nothing behind."""
    with pytest.raises(ValueError, match="row 2: want gap a finite number"):
        make(tmp_path, [{**PAIR, "gap": gap} for gap in (1, 2, None)], columns=("gap",))
    assert list((tmp_path / "made").iterdir()) == []


def test_an_example_is_shown_with_its_scored_part():
    words = tokenizer()
    text = decoded_example(words, words("hi")["input_ids"], [words("yo<eos>")["input_ids"], words("n")["input_ids"]])
    assert text.splitlines() == [
        "prompt, 2 tokens: hi", "response 1 of 2, 3 tokens scored: [[yo<eos>]]",
        "response 2 of 2, 1 tokens scored: [[n]]",
    ]  # fmt: skip
