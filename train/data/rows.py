"""A row of a file with the place it stands at: typed access to its values, and errors that name both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train.data.texts import Content, Message, UnusableRowError


@dataclass(frozen=True)
class Row:
    where: str  # "pairs.jsonl row 3"
    values: Mapping[str, Any]

    def name(self, *names: str) -> str:
        """The first of the names that is a column."""
        for name in names:
            if name in self.values:
                return name
        raise ValueError(f"{self.where}: want a column {' or '.join(names)}, got {', '.join(self.values)}")

    def content(self, *names: str) -> Content:
        name = self.name(*names)
        return content(self.where, name, self.values[name])

    def contents(self, *names: str) -> list[Content]:
        """A list of responses."""
        name = self.name(*names)
        values = self.values[name]
        if values is None:
            raise UnusableRowError(f"no value in {name}")
        if not isinstance(values, list):
            raise ValueError(f"{self.where}: want {name} a list of responses, got {_short(values)}")
        return [content(self.where, name, value) for value in values]

    def text(self, name: str) -> str:
        value = self.values[self.name(name)]
        if value is None:
            raise UnusableRowError(f"no value in {name}")
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: want {name} a text, got {_short(value)}")
        return value

    def optional_text(self, name: str) -> str:
        """ "" where there is no such column or no value in it."""
        return "" if self.values.get(name) is None else self.text(name)

    def number(self, name: str) -> float:
        return finite(self.where, name, self.values[self.name(name)])

    def numbers(self, name: str, count: int) -> list[float]:
        """One a response of the row."""
        values = self.values[self.name(name)]
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"{self.where}: want {name} a list of {count} numbers, got {_short(values)}")
        return [finite(self.where, name, value) for value in values]

    def structure(self, name: str, kind: type) -> Any:
        """A list or a dict, also where it is written as JSON; empty where there is none."""
        value = self.values.get(name)
        if isinstance(value, str) and value.strip():
            value = parsed(self.where, name, value)
        value = without_nulls(value or kind())
        if not isinstance(value, kind):
            raise ValueError(f"{self.where}: want {name} a {kind.__name__} or one as JSON, got {_short(value)}")
        return value


def content(where: str, name: str, value: Any) -> Content:
    if isinstance(value, str):
        return value
    if value is None:
        raise UnusableRowError(f"no value in {name}")
    if not isinstance(value, list) or not all(isinstance(part, dict) and "role" in part for part in value):
        raise ValueError(f"{where}: want {name} a text or a list of messages, got {_short(value)}")
    return [message(part) for part in value]


def message(value: Mapping[str, Any]) -> Message:
    return without_nulls(dict(value))


def finite(where: str, name: str, value: Any) -> float:
    """Numbers may be written as text, as in CSV."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: want {name} a finite number, got {_short(value)}")
    return number


def parsed(where: str, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: want {name} as JSON, got {_short(text)} ({error})") from None


def without_nulls(value: Any) -> Any:
    """Arrow gives every struct of a column every key of any, null where the row has none; templates test for keys."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
