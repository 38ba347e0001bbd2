"""Prompts of evaluation.generate: the formats that they come in, what is dropped or refused, and tokens and texts."""

from __future__ import annotations

import json

import pytest
from tokenizers import decoders, processors

from evaluation.generating.prompts import Codec, Prompt, anchor_row, answer_of, read_prompts
from evaluation.responses import id_of
from toy.tokenizer import tokenizer
from train.data import Source


def user(said):
    return {"role": "user", "content": said}


def answer(said):
    return {"role": "assistant", "content": said}


def words():
    made = tokenizer()
    made.backend_tokenizer.decoder = decoders.Fuse()
    return made


def read(folder, *rows, chat=False, **source):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_prompts(Source(path=str(path), **source), chat=chat)


TOLD = "\n\nHuman: hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "content", "own"),
    [
        ({"prompt": "hi"}, "hi", None),
        ({"query": "hi"}, "hi", None),
        ({"prompt": [user("hi")]}, [user("hi")], None),
        ({"prompt": "hi", "response": " a"}, "hi", " a"),
        ({"prompt": [user("hi")], "response": "a"}, [user("hi")], "a"),
        ({"prompt": "hi", "chosen": " a", "rejected": " b"}, "hi", " a"),
        ({"prompt": "hi", "chosen": [user("hi"), answer("a")], "rejected": [user("hi"), answer("b")]},
         [user("hi")], "a"),
        ({"chosen": f"{TOLD} a", "rejected": f"{TOLD} b"}, [user("hi")], "a"),
        ({"prompt": "hi", "responses": ["a", "b", "c"], "scores": [0, 2, 1]}, "hi", "b"),
        ({"messages": [user("hi"), answer("a")]}, [user("hi")], "a"),
        ({"messages": [user("x"), answer("y"), user("hi")]}, [user("x"), answer("y"), user("hi")], None),
        ({"instruction": "hi", "input": "so"}, [user("hi\nso")], None),
        ({"instruction": "hi", "output": "a"}, [user("hi")], "a"),
    ],
)  # fmt: skip
def test_the_formats_of_a_prompt(tmp_path, row, content, own):
    (prompt,) = read(tmp_path, row).prompts
    assert prompt.content == content and prompt.id == id_of(content) and prompt.where == "rows.jsonl row 0"
    if own is None:
        with pytest.raises(ValueError, match="row 0: want a row with an answer of its own"):
            answer_of(prompt)
    else:
        assert answer_of(prompt) == own


def test_ids_are_the_data_s_own_where_it_has_them(tmp_path):
    found = read(tmp_path, {"prompt": "a", "id": 7}, {"prompt": "b", "id": 8}).prompts
    assert [prompt.id for prompt in found] == ["7", "8"]
    assert read(tmp_path, {"prompt": "a", "id": 7, "prompt_id": "x"}).prompts[0].id == "x"
    with pytest.raises(ValueError, match=r"row 0: want id a text or a whole number, got 0\.5"):
        read(tmp_path, {"prompt": "a", "id": 0.5})


def test_a_prompt_is_taken_once_and_an_id_is_of_one_prompt(tmp_path):
    found = read(tmp_path, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": None})
    assert [prompt.content for prompt in found.prompts] == ["a", "b"]
    assert found.dropped == {"the same prompt again": 1, "no value in prompt": 1}
    with pytest.raises(
        ValueError, match=r"row 1: want an id for each different prompt.*got '1', which rows.jsonl row 0"
    ):
        read(tmp_path, {"prompt": "a", "id": 1}, {"prompt": "b", "id": 1})
    with pytest.raises(ValueError, match=r"want at least one prompt, got none \(1 rows: no value in prompt"):
        read(tmp_path, {"prompt": None, "id": 1})


def test_what_is_no_prompt(tmp_path):
    with pytest.raises(ValueError, match="row 0: want a column prompt or query or text, got question"):
        read(tmp_path, {"question": "a"})
    with pytest.raises(ValueError, match="row 0: want a conversation that waits for an answer"):
        read(tmp_path, {"prompt": [user("a"), answer("b")]})
    with pytest.raises(ValueError, match="row 0: want tools and chat_template_kwargs beside messages only"):
        read(tmp_path, {"prompt": "a", "tools": [{"name": "f"}]})
    with pytest.raises(
        ValueError, match="row 0: chat_template_kwargs: want names that the chat template reads, got too"
    ):
        read(tmp_path, {"prompt": [user("a")], "chat_template_kwargs": {"tools": 1}})


def test_chat_makes_a_plain_prompt_the_user_s_message(tmp_path):
    (prompt,) = read(tmp_path, {"prompt": "hi"}, chat=True).prompts
    assert prompt.content == [user("hi")] and prompt.id == id_of([user("hi")])


def test_limit_and_rows_of_csv(tmp_path):
    assert len(read(tmp_path, {"prompt": "a"}, {"prompt": "b"}, limit=1).prompts) == 1
    (tmp_path / "rows.csv").write_text("prompt\n007\nNA\n")
    found = read_prompts(Source(path=str(tmp_path / "rows.csv")))
    assert [prompt.content for prompt in found.prompts] == ["007", "NA"]


def names(ids):
    return "".join(words().convert_ids_to_tokens(ids))


def test_tokens_of_plain_prompts_and_of_conversations():
    codec = Codec(words())
    assert names(codec.ids(Prompt("w", "i", "hi "))) == "hi "
    chat = [user("hi"), answer("a"), user("so")]
    assert names(codec.ids(Prompt("w", "i", chat))) == "<user>hi<assistant>a<eos><user>so<assistant>"
    with pytest.raises(ValueError, match="row 3: want a prompt, got an empty one and a tokenizer without a bos"):
        codec.ids(Prompt("row 3", "i", ""))


def test_an_eos_token_that_the_tokenizer_appends_is_not_continued():
    closing = words()
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    assert names(Codec(closing).ids(Prompt("w", "i", "hi"))) == "hi"


def test_templates_and_their_arguments():
    bare = words()
    bare.chat_template = None
    with pytest.raises(ValueError, match="row 3: want a chat template for a conversation, got a tokenizer without one"):
        Codec(bare).ids(Prompt("row 3", "i", [user("hi")]))
    bare.chat_template = "{{ mood }}{{ messages[0]['content'] }}"
    assert names(Codec(bare, {"mood": "x"}).ids(Prompt("w", "i", [user("hi")]))) == "xhi"
    assert names(Codec(bare, {"mood": "x"}).ids(Prompt("w", "i", [user("hi")], None, {"mood": "y"}))) == "yhi"
    with pytest.raises(ValueError, match="chat_template_args: want names that the chat template reads, got tools"):
        Codec(bare, {"tools": []})
    bare.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match="row 3: no system role"):
        Codec(bare).ids(Prompt("row 3", "i", [user("hi")]))


def test_texts_of_plain_responses_are_exact_and_of_messages_without_white_space_around_them():
    codec, made = Codec(words()), words().convert_tokens_to_ids(list(" a  b "))
    plain, chat = Prompt("w", "i", "hi"), Prompt("w", "i", [user("hi")])
    assert codec.text(plain, codec.ids(plain), made) == " a  b "
    assert codec.text(chat, codec.ids(chat), made) == "a  b"
    assert codec.text(chat, codec.ids(chat), []) == ""
    assert codec.text(chat, codec.ids(chat), words().convert_tokens_to_ids(["a", "<user>", "b"])) == "a<user>b"


def test_a_continuation_keeps_the_space_that_its_tokenizer_hides():
    """As SentencePiece does: the first piece of a text loses its space, a later one does not."""
    spaced = words()
    spaced.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("b", " b"), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    codec, made = Codec(spaced), words().convert_tokens_to_ids(["b", "a"])
    assert codec.text(Prompt("w", "i", "hi"), codec.ids(Prompt("w", "i", "hi")), made) == " ba"


def test_rows_of_anchors():
    assert anchor_row(Prompt("w", "i", "hi"), " a") == {"prompt": "hi", "response": " a"}
    assert anchor_row(Prompt("w", "i", [user("hi")]), "a") == {"prompt": [user("hi")], "response": [answer("a")]}
    row = anchor_row(Prompt("w", "i", [user("hi")], [{"name": "f"}], {"mood": 1}), "a")
    assert row["tools"] == '[{"name": "f"}]' and row["chat_template_kwargs"] == '{"mood": 1}'
