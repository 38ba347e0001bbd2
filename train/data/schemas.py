"""A row of a known schema -> the examples of a stage, with the numbers that its objective asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from train.data.formats import FORMATS, STAGES, Format, Group
from train.data.numbers import Numbers
from train.data.rows import Row
from train.data.texts import Content, Dropped, Text, UnusableRowError, check_template_args

__all__ = ["FORMATS", "STAGES", "Text", "Wanted", "examples", "find_format"]
_OWN = {"unpaired": "desirable", "anchors": "weight"}  # columns that the stage itself gives
_TAKEN = ("id", "prompt", "responses")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run asks of its data; renamed: the objective's name of a column -> the data's."""

    stage: str
    columns: tuple[str, ...] = ()
    sequence_columns: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage: want one of {', '.join(STAGES)}, got {self.stage!r}")
        own = _OWN.get(self.stage)
        names = [*(name for name in self.columns if name != own), *([own] if own else []), *self.sequence_columns]
        for name in names:
            if names.count(name) > 1 or name in _TAKEN:
                raise ValueError(f"columns: want different names, none of {', '.join(_TAKEN)}, got {name!r}")
        stray = sorted(set(self.renamed) - set(names))
        if stray:
            raise ValueError(f"renamed: want some of {', '.join(names) or 'no columns'}, got {', '.join(stray)}")

    @property
    def own(self) -> str | None:
        return _OWN.get(self.stage)

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Columns of a number a group, with the stage's own."""
        asked = tuple(name for name in self.columns if name != self.own)
        return (*asked, self.own) if self.own else asked


def find_format(row: Row, name: str, stage: str) -> Format:
    """name "auto": by the columns of the row and the types of its values."""
    known = STAGES[stage]
    if name != "auto":
        if name not in known:
            raise ValueError(f"{row.where}: want a format of {stage}, one of {', '.join(known)}, got {name!r}")
        return FORMATS[name]
    for candidate in known:
        if FORMATS[candidate].matches(row.values):
            return FORMATS[candidate]
    formats = "; ".join(f"{candidate} ({FORMATS[candidate].columns})" for candidate in known)
    columns = ", ".join(f"{column} ({type(value).__name__})" for column, value in row.values.items())
    raise ValueError(f"{row.where}: want the columns of a format of {stage}: {formats}; got {columns}")


def examples(row: Row, form: Format, wanted: Wanted) -> list[Text] | Dropped:
    try:
        group = form.convert(row)
        picked = _picked(row, group, wanted)
    except UnusableRowError as error:
        return Dropped(str(error))
    numbers = Numbers(row, len(group.responses), wanted.renamed)
    asked = {name: numbers.of_group(name, picked) for name in wanted.columns if name != wanted.own}
    sequences = {name: numbers.of_responses(name) for name in wanted.sequence_columns}
    tools, args = _for_template(row, group.prompt)

    def text(responses: list[int], own: dict[str, float]) -> Text:
        chosen = [group.responses[k] for k in responses]
        some = {name: [values[k] for k in responses] for name, values in sequences.items()}
        return Text(group.prompt, chosen, {**asked, **own}, some, tools, args)

    if wanted.stage == "unpaired" and len(picked) == 2:
        if group.responses[picked[0]] == group.responses[picked[1]]:
            return Dropped("identical responses")
        return [text([k], {"desirable": value}) for k, value in zip(picked, (1.0, 0.0), strict=True)]
    if wanted.stage == "unpaired":
        return [text(picked, {"desirable": numbers.label()})]
    if wanted.stage == "sft" and "label" in row.values and not numbers.label():
        return Dropped("marked undesirable")
    if wanted.stage == "anchors":
        return [text([k], {"weight": weight}) for k, weight in zip(picked, numbers.weights(), strict=True)]
    return [text(picked, {})]


def _picked(row: Row, group: Group, wanted: Wanted) -> list[int]:
    """Which of the row's responses are used: all, or for a pair the best and the worst by their scores. Of a pair that
    is imitated, the chosen."""
    if wanted.stage == "sft":
        return [group.scores.index(max(group.scores)) if group.scores else 0]
    if group.scores is not None and wanted.stage in ("preference", "unpaired"):
        if len(group.scores) < 2:
            raise UnusableRowError("fewer than two responses")
        best, worst = max(group.scores), min(group.scores)
        if best == worst:
            raise UnusableRowError("tied scores")
        return [group.scores.index(best), group.scores.index(worst)]
    if wanted.stage == "lists" and len(group.responses) < 2:
        raise ValueError(f"{row.where}: want at least 2 responses, got {len(group.responses)}")
    return list(range(len(group.responses)))


def _for_template(row: Row, prompt: Content) -> tuple[list[Any] | None, dict[str, Any]]:
    """The tools and the arguments that the row gives the chat template."""
    tools, args = row.structure("tools", list), row.structure("chat_template_kwargs", dict)
    check_template_args(f"{row.where}: chat_template_kwargs", args)
    if isinstance(prompt, str) and (tools or args):
        raise ValueError(f"{row.where}: want tools and chat_template_kwargs beside messages only, got plain text")
    return tools or None, args
