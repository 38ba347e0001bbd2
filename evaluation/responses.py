"""A file of responses: JSONL, an object a line, written in whole lines and read with every value checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.files import append_rows, torn_bytes, write_rows
from train.data.rows import Row
from train.data.texts import Content, UnusableRowError

FINISHES = ("stop", "length")  # the model ended it, or it was cut at max_tokens
_OPENING = b'{"prompt": '  # of every line that is written here


@dataclass(frozen=True, kw_only=True)
class Response:
    """A prompt without an id is known by its content. None: the file does not say."""

    prompt: Content
    response: str
    prompt_id: str = ""
    sample: int = 0  # of this prompt
    model: str = ""
    seed: int | None = None
    finish: str | None = None
    tokens: int | None = None  # without the one that ends it
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None  # of the prompt's row, with which the template was filled
    template_args: Mapping[str, Any] = field(default_factory=dict)  # likewise, the row's own

    def __post_init__(self) -> None:
        if not self.prompt_id:
            object.__setattr__(self, "prompt_id", id_of(self.prompt))

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt_id, self.sample


def id_of(prompt: Content) -> str:
    """16 hex digits, the same for the same prompt in any file."""
    canonical = json.dumps(prompt, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def read(path: Path) -> list[Response]:
    """{"prompt", "response"} a line is enough; columns that are not of a Response are left alone. Lines without a
    sample number are counted, prompt by prompt."""
    made = _read(path, path.read_bytes())
    if not made:
        raise ValueError(f"{path}: want a response a line, got an empty file")
    return made


def read_begun(path: Path) -> tuple[list[Response], int]:
    """Of a file that may be absent, empty or end in the middle of a line, as a killed process leaves it -> the whole
    lines' responses, and the bytes of the last line if it is not whole."""
    content = path.read_bytes() if path.exists() else b""
    torn = torn_bytes(content)
    if torn == len(content) and not content.startswith(_OPENING[:torn]):
        torn = 0  # nothing of ours: an error names its first line
    return _read(path, content[: len(content) - torn]), torn


def _read(path: Path, content: bytes) -> list[Response]:
    found: dict[tuple[str, int], int] = {}
    counted: Counter[str] = Counter()
    made = []
    for number, line in enumerate(_lines(path, content), 1):
        response, numbered = _parsed(f"{path} line {number}", line)
        if not numbered:
            response = dataclasses.replace(response, sample=counted[response.prompt_id])
            counted[response.prompt_id] += 1
        if response.key in found:
            raise ValueError(
                f"{path} line {number}: want each sample of a prompt once, got sample {response.sample} of prompt "
                f"{response.prompt_id} again, which line {found[response.key]} has"
            )
        found[response.key] = number
        made.append(response)
    return made


def append(path: Path, responses: Sequence[Response]) -> None:
    append_rows(path, map(_row, responses))


def write(path: Path, responses: Iterable[Response]) -> None:
    write_rows(path, map(_row, responses))


def _row(response: Response) -> dict[str, Any]:
    """A line: tools and the template's arguments as the trainer's data has them, where there are any."""
    row = {name: value for name, value in vars(response).items() if name not in ("tools", "template_args")}
    return row | context_columns(response.tools, response.template_args)


def context_columns(tools: Sequence[Any] | None, template_args: Mapping[str, Any]) -> dict[str, Any]:
    """As text: columns of JSON lines have one type each where Arrow reads them, tools need not."""
    found = {"tools": tools, "chat_template_kwargs": dict(template_args)}
    return {name: json.dumps(value) for name, value in found.items() if value}


def _lines(path: Path, content: bytes) -> list[str]:
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: want UTF-8, got {error}") from None
    return lines[:-1] if not lines[-1] else lines


def _parsed(where: str, line: str) -> tuple[Response, bool]:
    """-> the response, and whether the line numbers its sample."""
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: want a JSON object, got {line[:80]!r} ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: want a JSON object, got {line[:80]!r}")
    row = Row(where, values)
    try:
        prompt, response = row.content("prompt"), row.content("response")
    except UnusableRowError as error:
        raise ValueError(f"{where}: want prompt and response, got {error}") from None
    finish = _typed(row, "finish", str)
    if finish is not None and finish not in FINISHES:
        raise ValueError(f"{where}: want finish one of {', '.join(FINISHES)}, got {finish!r}")
    sample = _typed(row, "sample", int)
    made = Response(
        prompt=prompt, response=text_of(where, response), prompt_id=_typed(row, "prompt_id", str) or "",
        sample=sample or 0, model=_typed(row, "model", str) or "", seed=_typed(row, "seed", int), finish=finish,
        tokens=_typed(row, "tokens", int), sampling=_typed(row, "sampling", dict) or {},
        tools=row.structure("tools", list) or None, template_args=row.structure("chat_template_kwargs", dict),
    )  # fmt: skip
    if made.sample < 0 or (made.tokens or 0) < 0:
        raise ValueError(f"{where}: want sample and tokens >= 0, got {made.sample} and {made.tokens}")
    return made, sample is not None


def text_of(where: str, said: Content) -> str:
    """A response is a text, or a conversation of one message of the assistant."""
    if isinstance(said, str):
        return said
    if len(said) == 1 and said[0]["role"] == "assistant" and isinstance(said[0].get("content"), str):
        return said[0]["content"]
    raise ValueError(f"{where}: want a response of text or of one message of the assistant, got {said!r}")


def _typed(row: Row, name: str, kind: type) -> Any:
    """None where there is no such column or no value in it."""
    value = row.values.get(name)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise ValueError(f"{row.where}: want {name} of type {kind.__name__}, got {value!r}")
    return value
