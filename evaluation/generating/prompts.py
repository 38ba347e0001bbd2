"""Prompts from a file or the hub, with or without responses beside them; and the tokenizer on both sides of a model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from evaluation.responses import context_columns, id_of, text_of
from train.data.formats import FORMATS, PROMPTS, Group
from train.data.rows import Row
from train.data.sources import Source, read
from train.data.texts import Content, UnusableRowError, check_template_args
from train.data.transcripts import alpaca_prompt, said_by

_IDS = ("prompt_id", "id")
_CONTEXT = 8  # tokens of a plain prompt that its continuation is decoded with


class Prompt(NamedTuple):
    where: str  # "held_out.jsonl row 3"
    id: str
    content: Content
    tools: list[Any] | None = None
    template_args: Mapping[str, Any] = {}  # never written to
    answer: Content | None = None  # the data's own response: of a pair the chosen one, of several the best

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.content, str)


class Prompts(NamedTuple):
    prompts: list[Prompt]  # each id once
    dropped: Counter[str]  # cause: rows


def read_prompts(source: Source, *, chat: bool = False) -> Prompts:
    """Rows of any format that the trainer reads, or of prompts alone; chat: a plain prompt is the user's message."""
    found: dict[str, Prompt] = {}
    dropped: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as cache:
        for index, values in enumerate(read(source, Path(cache))):
            try:
                prompt = _prompt(Row(f"{source.label} row {index}", values), chat)
            except UnusableRowError as error:
                dropped[str(error)] += 1
                continue
            known = found.setdefault(prompt.id, prompt)
            if known is prompt:
                continue
            if known[2:5] != prompt[2:5]:
                raise ValueError(
                    f"{prompt.where}: want an id for each different prompt (with its tools), got {prompt.id!r}, which "
                    f"{known.where} has"
                )
            dropped["the same prompt again"] += 1
    if not found:
        causes = "; ".join(f"{count} rows: {cause}" for cause, count in dropped.items())
        raise ValueError(f"source {source.path}: want at least one prompt, got none ({causes})")
    return Prompts(list(found.values()), dropped)


class Codec:
    """Prompts to tokens, with the chat template where they are conversations, and what was generated to text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_args: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self._args = tokenizer, dict(template_args or {})
        check_template_args("chat_template_args", self._args)
        self._closes = self._plain("a")[-1:] == [tokenizer.eos_token_id] != self._plain("a", special=False)[-1:]

    def ids(self, prompt: Prompt) -> list[int]:
        """What a response follows, as in training: no token that ends a text, the template's opening of an answer."""
        if isinstance(prompt.content, str):
            ids = self._plain(prompt.content)
            ids = ids[:-1] if self._closes else ids
        else:
            ids = self._chat(prompt)
        if not ids and self._tokenizer.bos_token_id is None:
            raise ValueError(f"{prompt.where}: want a prompt, got an empty one and a tokenizer without a bos token")
        return ids or [self._tokenizer.bos_token_id]

    def text(self, prompt: Prompt, prompt_ids: list[int], ids: list[int]) -> str:
        """Plain: what continues the prompt, to the character. A message: without white space around it, as the trainer
        reads messages. Special tokens in the middle of a response stay, so that it can be made of the same tokens."""
        if prompt.is_chat:
            return self._decoded(ids).strip()
        context = prompt_ids[-_CONTEXT:]
        whole, head = self._decoded(context + ids), self._decoded(context)
        return whole[len(head) :] if whole.startswith(head) else self._decoded(ids)

    def count(self, text: str) -> int:
        return len(self._plain(text, special=False))

    def _chat(self, prompt: Prompt) -> list[int]:
        args, messages = {**self._args, **prompt.template_args}, prompt.content  # type: tuple[dict[str, Any], Any]
        if self._tokenizer.chat_template is None and "chat_template" not in args:
            raise ValueError(f"{prompt.where}: want a chat template for a conversation, got a tokenizer without one")
        try:
            made: Any = self._tokenizer.apply_chat_template(
                messages, tools=prompt.tools, add_generation_prompt=True, return_dict=True, **args
            )
        except Exception as error:  # a template refuses by errors of its own
            raise ValueError(f"{prompt.where}: {error}") from error
        return made["input_ids"]

    def _plain(self, text: str, special: bool = True) -> list[int]:
        made: Any = self._tokenizer(text, add_special_tokens=special, verbose=False)
        return made["input_ids"]

    def _decoded(self, ids: list[int]) -> str:
        made: Any = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return made


def template_digest(tokenizer: PreTrainedTokenizerBase, template_args: Mapping[str, Any]) -> str:
    """By what a chat template with its arguments is known again: 16 hex digits."""
    canonical = json.dumps([tokenizer.chat_template, dict(template_args)], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def read_template_args(given: str) -> dict[str, Any]:
    """Of a command's --chat-template-args."""
    try:
        made = json.loads(given)
    except ValueError:
        made = None
    if not isinstance(made, dict):
        raise ValueError(f"--chat-template-args: want a JSON object, got {given!r}")
    check_template_args("--chat-template-args", made)
    return made


def anchor_row(prompt: Prompt, response: str) -> dict[str, Any]:
    """What the trainer reads as anchor_data."""
    if not prompt.is_chat:
        return {"prompt": prompt.content, "response": response}
    row: dict[str, Any] = {"prompt": prompt.content, "response": said_by("assistant", response)}
    return row | context_columns(prompt.tools, prompt.template_args)


def answer_of(prompt: Prompt) -> str:
    if prompt.answer is None:
        raise ValueError(f"{prompt.where}: want a row with an answer of its own, got a prompt alone")
    return text_of(prompt.where, prompt.answer)


def _prompt(row: Row, chat: bool) -> Prompt:
    group = _group(row)
    content = said_by("user", group.prompt) if chat else group.prompt
    tools, args = row.structure("tools", list), row.structure("chat_template_kwargs", dict)
    check_template_args(f"{row.where}: chat_template_kwargs", args)
    if isinstance(content, str):
        if tools or args:
            raise ValueError(f"{row.where}: want tools and chat_template_kwargs beside messages only, got plain text")
    elif not content:
        raise UnusableRowError("conversation without a prompt")
    elif content[-1]["role"] == "assistant":
        raise ValueError(f"{row.where}: want a conversation that waits for an answer, got one that ends with one")
    answer = None
    if group.responses:
        scores = group.scores or [0.0]
        answer = group.responses[scores.index(max(scores))]
    return Prompt(row.where, _id(row) or id_of(content), content, tools or None, args, answer)


def _group(row: Row) -> Group:
    values = row.values
    if isinstance(values.get("messages"), list) and "prompt" not in values:
        chat = row.content("messages")
        done = bool(chat) and isinstance(chat, list) and chat[-1]["role"] == "assistant"
        return Group(chat[:-1], [chat[-1:]]) if done else Group(chat, [])
    for form in FORMATS.values():
        if form.matches(values):
            return form.convert(row)
    if isinstance(values.get("instruction"), str):
        return Group(alpaca_prompt(row), [])
    return Group(row.content(*PROMPTS), [])


def _id(row: Row) -> str | None:
    for name in _IDS:
        value = row.values.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ValueError(f"{row.where}: want {name} a text or a whole number, got {value!r}")
        return str(value)
    return None
