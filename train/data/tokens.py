"""A group's text -> token ids: where the prompt ends, what closes a response, and what is cut when it is too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from train.data.texts import Content, Dropped, Message, Text, check_template_args

MODES = ("keep_start", "keep_end", "drop")


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    max_length: int | None = None  # of prompt and response together
    truncation_mode: str = "keep_start"  # of a response; "keep_end" of the prompt first; "drop" nothing, but the group
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length: want at least 2, a token each of prompt and response, got {self.max_length}")
        if self.truncation_mode not in MODES:
            raise ValueError(f"truncation_mode: want one of {', '.join(MODES)}, got {self.truncation_mode!r}")
        check_template_args("chat_template_args", self.chat_template_args)


class Tokens(NamedTuple):
    prompt: list[int]  # what all responses of the group follow
    responses: list[list[int]]  # K, what is scored
    truncated: bool
    unaligned: bool = False  # the prompt's own tokens are not how prompt and response begin; their common part is


class Tokeniser:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: TokenOptions) -> None:
        self._tokenizer, self._options = tokenizer, options
        self._closes_prompts = self._appends_eos()

    def __call__(self, text: Text) -> Tokens | Dropped:
        if any(map(_is_blank, text.responses)):
            return Dropped("empty response")
        if not isinstance(text.prompt, str) and not text.prompt:
            return Dropped("conversation without a prompt")
        own = self._ids(text.prompt, text, opening=True)
        wholes = [self._ids(_joined(text.prompt, response), text, opening=False) for response in text.responses]
        shared = min(_common(own, whole) for whole in wholes)
        prompt, responses = own[:shared], [whole[shared:] for whole in wholes]
        if not all(responses):
            return Dropped("empty response")
        if not prompt:
            if self._tokenizer.bos_token_id is None:
                return Dropped("empty prompt and the tokenizer has no bos token")
            prompt = [self._tokenizer.bos_token_id]
        fitted = self._fit(prompt, responses)
        if isinstance(fitted, Dropped):
            return fitted
        if len(fitted.responses) > 1 and all(response == fitted.responses[0] for response in fitted.responses):
            return Dropped("identical responses")
        return fitted._replace(unaligned=shared < len(own))

    def _ids(self, content: Content, text: Text, opening: bool) -> list[int]:
        """opening: content is a prompt, which a response is to follow."""
        if isinstance(content, list):
            return self._chat_ids(content, text, opening)
        eos = self._tokenizer.eos_token_id
        if eos is None:
            raise ValueError("tokenizer: want an eos token, which ends a plain response, got none")
        ids = self._plain_ids(content)
        if opening:
            return ids[:-1] if self._closes_prompts else ids
        return ids if ids[-1:] == [eos] else [*ids, eos]

    def _chat_ids(self, messages: list[Message], text: Text, opening: bool) -> list[int]:
        args = {**self._options.chat_template_args, **text.template_args}
        if self._tokenizer.chat_template is None and "chat_template" not in args:
            raise ValueError("tokenizer: want a chat template for conversational data, got none: pass chat_template")
        made: Any = self._tokenizer.apply_chat_template(
            messages, tools=text.tools, add_generation_prompt=opening, return_dict=True, **args
        )
        return made["input_ids"]

    def _fit(self, prompt: list[int], responses: list[list[int]]) -> Tokens | Dropped:
        limit, longest = self._options.max_length, max(map(len, responses))
        if limit is None or len(prompt) + longest <= limit:
            return Tokens(prompt, responses, truncated=False)
        if self._options.truncation_mode == "drop":
            return Dropped("longer than max_length")
        if self._options.truncation_mode == "keep_end":
            prompt = prompt[-max(1, limit - longest) :]
        room = limit - len(prompt)
        if room < 1:
            return Dropped("prompt fills max_length")
        return Tokens(prompt, [response[:room] for response in responses], truncated=True)

    def _plain_ids(self, text: str, special: bool = True) -> list[int]:
        made: Any = self._tokenizer(text, add_special_tokens=special, verbose=False)
        return made["input_ids"]

    def _appends_eos(self) -> bool:
        """Seen on a letter: of an empty text, a bos token that is also the eos token could not be told from it."""
        return self._plain_ids("a")[-1:] == [self._tokenizer.eos_token_id] != self._plain_ids("a", special=False)[-1:]


def _joined(prompt: Content, response: Content) -> Content:
    if isinstance(prompt, str) and isinstance(response, str):
        return prompt + response
    if isinstance(prompt, list) and isinstance(response, list):
        return prompt + response
    raise TypeError(f"group: want prompt and responses all text or all messages, got {prompt!r} and {response!r}")


def _is_blank(response: Content) -> bool:
    """A message that only calls tools is not blank."""
    if isinstance(response, str):
        return not response.strip()
    last: Message = response[-1] if response else {}
    said = last.get("content") or ""
    if isinstance(said, list):
        said = "".join(str(part.get("text", part)) if isinstance(part, dict) else str(part) for part in said)
    return not last.get("tool_calls") and not said.strip()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    if other[: len(one)] == one:
        return len(one)
    return next(i for i, token in enumerate(one) if i >= len(other) or other[i] != token)
