"""Conversations as data sets write them -> messages; and where a prompt ends and a response begins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from train.data.rows import Row, parsed
from train.data.texts import Content, Message, UnusableRowError

_HH_OPENING = re.compile(r"\s*Human:")
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "function_call": "assistant", "observation": "tool", "tool": "tool",
}  # fmt: skip


def is_hh(text: Any) -> bool:
    return isinstance(text, str) and _HH_OPENING.match(text) is not None


def hh_messages(text: str) -> list[Message]:
    """Human and Assistant turns, parted by an empty line; white space around a turn is not part of it."""
    parts = _HH_TURN.split(text)
    if parts[0].strip():
        raise UnusableRowError("transcript does not begin with a turn")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[who], "content": said.strip()} for who, said in turns]


def sharegpt_message(where: str, turn: Any) -> Message:
    """A function call (JSON with name and arguments) becomes a message with tool_calls, as chat templates read it."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise ValueError(f'{where}: want a turn {{"from", "value"}}, got {turn!r}')
    who, said = turn.get("from"), turn["value"]
    if who not in _SHAREGPT_ROLES:
        raise ValueError(f"{where}: want a turn from one of {', '.join(_SHAREGPT_ROLES)}, got {who!r}")
    if who != "function_call":
        return {"role": _SHAREGPT_ROLES[who], "content": said}
    calls = parsed(where, "function_call", said)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise ValueError(f"{where}: want a function_call with name and arguments, got {said!r}")
    made = [{"type": "function", "function": {"arguments": {}, **call}} for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def alpaca_prompt(row: Row) -> list[Message]:
    """system, history [[user, assistant], ...], instruction and input, the last two on lines of their own."""
    system, given = row.optional_text("system"), row.optional_text("input")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for turn in row.structure("history", list):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(said, str) for said in turn):
            raise ValueError(f"{row.where}: want history of [user, assistant], got {turn!r}")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    instruction = row.text("instruction")
    return [*messages, {"role": "user", "content": f"{instruction}\n{given}" if given else instruction}]


def said_by(role: str, said: Content) -> list[Message]:
    return [{"role": role, "content": said}] if isinstance(said, str) else said


def split_plain(one: str, other: str) -> tuple[str, list[Content]]:
    """Texts that contain their prompt: what they share, up to the white space before the first word that differs."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    shared = one[: next(differ, min(len(one), len(other)))]
    if not shared[-1:].isspace():
        words = shared.rsplit(maxsplit=1)
        shared = words[0] if len(words) == 2 else ""
    prompt = shared.rstrip()
    return prompt, [one[len(prompt) :], other[len(prompt) :]]


def split_messages(wholes: Sequence[list[Message]]) -> tuple[list[Message], list[Content]]:
    """Conversations that contain their prompt: the messages they share, but never the last of any."""
    if not all(wholes):
        raise UnusableRowError("empty response")
    longest = min(map(len, wholes)) - 1
    shared = 0
    while shared < longest and all(whole[shared] == wholes[0][shared] for whole in wholes):
        shared += 1
    responses = [whole[shared:] for whole in wholes]
    if any(response[0]["role"] != "assistant" for response in responses):
        raise UnusableRowError("a response does not begin with the assistant")
    return wholes[0][:shared], list(responses)


def unify(prompt: Content, responses: Sequence[Content]) -> tuple[Content, list[Content]]:
    """Prompt and responses, each text or messages -> all text or all messages, the prompt in none of the responses.

    Text beside messages is the user's or the assistant's. Messages that begin with the prompt, or with anything but
    an answer, are whole conversations: then the messages they share are the prompt.
    """
    if isinstance(prompt, str) and all(isinstance(response, str) for response in responses):
        return prompt, list(responses)
    chats = [said_by("assistant", response) for response in responses]
    if not all(chats):
        raise UnusableRowError("empty response")
    answers = all(chat[0]["role"] == "assistant" for chat in chats)
    if isinstance(prompt, str) and not answers:
        shared, rest = split_messages(chats)
        if all(part.get("content") != prompt for part in shared):
            raise UnusableRowError("the prompt is not in the conversation")
        return shared, rest
    opening = said_by("user", prompt)
    contained = [bool(opening) and chat[: len(opening)] == opening for chat in chats]
    if answers and not any(contained):
        return opening, list(chats)
    return split_messages([chat if has else opening + chat for chat, has in zip(chats, contained, strict=True)])
