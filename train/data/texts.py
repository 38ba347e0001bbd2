"""What a row of any schema becomes before it is tokenised: a prompt and K responses, as text or as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Message = dict[str, Any]  # {"role", "content", ...}
Content = str | list[Message]  # plain text, or a piece of a conversation

_SET_BY_US = (
    "conversation", "tools", "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation",
    "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip


class Text(NamedTuple):
    """A group; its prompt and its responses are all plain text or all conversational."""

    prompt: Content
    responses: list[Content]  # K
    columns: dict[str, float]  # a number a group
    sequence_columns: dict[str, list[float]]  # K numbers a group
    tools: list[Any] | None
    template_args: dict[str, Any]


class Dropped(NamedTuple):
    cause: str


class UnusableRowError(Exception):
    """A row that cannot serve though its schema is right; it is dropped and its cause counted."""


def check_template_args(where: str, args: Mapping[str, Any]) -> None:
    taken = sorted(set(args) & set(_SET_BY_US))
    if taken:
        raise ValueError(f"{where}: want names that the chat template reads, got {', '.join(taken)}")
