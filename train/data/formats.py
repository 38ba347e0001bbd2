"""The schemas of rows: of each its columns, whether a row is of it, and what its prompt and responses are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from train.data.rows import Row
from train.data.texts import Content, UnusableRowError
from train.data.transcripts import (
    alpaca_prompt,
    hh_messages,
    is_hh,
    said_by,
    sharegpt_message,
    split_messages,
    split_plain,
    unify,
)

PROMPTS = ("prompt", "query", "text")
RESPONSES = ("responses", "completions", "samples")
SCORES = ("scores", "rewards")


class Group(NamedTuple):
    prompt: Content
    responses: list[Content]  # K, all that the row has
    scores: list[float] | None = None  # [K], where a pair is the best against the worst of them


class Format(NamedTuple):
    columns: str  # as an error message shows them
    matches: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Row], Group]


def _has(values: Mapping[str, Any], *names: str | tuple[str, ...]) -> bool:
    """Each of the names, or one of several."""
    return all(any(one in values for one in (name if isinstance(name, tuple) else (name,))) for name in names)


def _kinds(values: Mapping[str, Any], kind: type | tuple[type, ...], *names: str) -> bool:
    return all(isinstance(values.get(name), kind) for name in names)


def _pairs(row: Row) -> Group:
    chosen, rejected = row.content("chosen"), row.content("rejected")
    if "prompt" in row.values:
        return Group(*unify(row.content("prompt"), [chosen, rejected]))
    if isinstance(chosen, str) and isinstance(rejected, str):
        return Group(*split_plain(chosen, rejected))
    if isinstance(chosen, list) and isinstance(rejected, list):
        return Group(*split_messages([chosen, rejected]))
    raise ValueError(f"{row.where}: want chosen and rejected both texts or both messages, got one of each")


def _ultrafeedback(row: Row) -> Group:
    return Group(*unify(row.text("prompt"), [row.content("chosen"), row.content("rejected")]))


def _hh(row: Row) -> Group:
    chats = [hh_messages(row.text("chosen")), hh_messages(row.text("rejected"))]
    prompt, responses = split_messages(chats)
    if any(len(response) != 1 for response in responses):
        raise UnusableRowError("transcripts differ before the last turn")
    return Group(prompt, responses)


def _sharegpt(row: Row) -> Group:
    system = row.optional_text("system")
    turns = [sharegpt_message(row.where, turn) for turn in row.structure("conversations", list)]
    answers: list[Content] = []
    for name in ("chosen", "rejected"):
        turn = row.values[row.name(name)]
        if turn is None:
            raise UnusableRowError(f"no value in {name}")
        answers.append([sharegpt_message(row.where, turn)])
    return Group([*(said_by("system", system) if system else []), *turns], answers)


def _alpaca_ranking(row: Row) -> Group:
    answers = row.contents("output") if "output" in row.values else [row.content("chosen"), row.content("rejected")]
    if len(answers) != 2:
        raise ValueError(f"{row.where}: want output of two responses, the better first, got {len(answers)}")
    return Group(*unify(alpaca_prompt(row), answers))


def _scored(row: Row) -> Group:
    group = _responses(row)
    return group._replace(scores=row.numbers(row.name(*SCORES), len(group.responses)))


def _responses(row: Row) -> Group:
    return Group(*unify(row.content(*PROMPTS), row.contents(*RESPONSES)))


def _completion(row: Row) -> Group:
    return Group(*unify(row.content("prompt"), [row.content("completion")]))


def _messages(row: Row) -> Group:
    """What follows the last answer is left out."""
    chat = row.content("messages")
    if isinstance(chat, str):
        raise ValueError(f"{row.where}: want messages a list of messages, got a text")
    ends = [i for i, said in enumerate(chat) if said["role"] == "assistant"]
    if not ends:
        raise UnusableRowError("no message of the assistant")
    return Group(chat[: ends[-1]], [chat[ends[-1] : ends[-1] + 1]])


def _alpaca(row: Row) -> Group:
    return Group(*unify(alpaca_prompt(row), [row.content("output")]))


def _anchors(row: Row) -> Group:
    name = row.name("response", "completion", *RESPONSES)
    answers = row.contents(name) if name in RESPONSES else [row.content(name)]
    return Group(*unify(row.content(*PROMPTS), answers))


def _is_alpaca_ranking(row: Mapping[str, Any]) -> bool:
    return _kinds(row, str, "instruction") and (_kinds(row, list, "output") or _has(row, "chosen", "rejected"))


def _is_ultrafeedback(row: Mapping[str, Any]) -> bool:
    scored = _has(row, "score_chosen", "score_rejected")
    return scored and _kinds(row, str, "prompt") and _kinds(row, list, "chosen", "rejected")


FORMATS: dict[str, Format] = {
    "ultrafeedback": Format(
        "prompt, chosen, rejected, score_chosen, score_rejected", _is_ultrafeedback, _ultrafeedback
    ),
    "sharegpt": Format(
        "conversations, chosen, rejected",
        lambda row: _kinds(row, list, "conversations") and _kinds(row, dict, "chosen", "rejected"), _sharegpt,
    ),
    "alpaca_ranking": Format("instruction, input?, chosen, rejected or output", _is_alpaca_ranking, _alpaca_ranking),
    "scored": Format(
        "prompt, responses, scores", lambda row: _has(row, PROMPTS, RESPONSES, SCORES), _scored
    ),
    "hh": Format(
        "chosen, rejected as transcripts",
        lambda row: "prompt" not in row and is_hh(row.get("chosen")) and is_hh(row.get("rejected")), _hh,
    ),
    "pairs": Format("prompt?, chosen, rejected", lambda row: _kinds(row, (str, list), "chosen", "rejected"), _pairs),
    "messages": Format("messages", lambda row: _kinds(row, list, "messages"), _messages),
    "prompt_completion": Format("prompt, completion", lambda row: _has(row, "prompt", "completion"), _completion),
    "alpaca": Format("instruction, input?, output", lambda row: _kinds(row, str, "instruction", "output"), _alpaca),
    "labelled": Format("prompt, completion, label", lambda row: _has(row, "prompt", "completion"), _completion),
    "responses": Format("prompt, responses", lambda row: _has(row, PROMPTS, RESPONSES), _responses),
    "anchors": Format(
        "prompt, response or completion or responses, weight?",
        lambda row: _has(row, PROMPTS, ("response", "completion", *RESPONSES)), _anchors,
    ),
}  # fmt: skip

_PAIRS = ("ultrafeedback", "sharegpt", "alpaca_ranking", "scored", "hh", "pairs")
STAGES: dict[str, tuple[str, ...]] = {  # stage: its formats, in the order that rows are tried for them
    "sft": ("messages", "prompt_completion", "alpaca", *_PAIRS),
    "preference": _PAIRS,
    "unpaired": ("labelled", *_PAIRS),
    "lists": ("scored", "responses"),
    "anchors": ("anchors",),
}
