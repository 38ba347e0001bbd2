"""What a key of the settings is: a field with a line of help and, where it has one, a limit on its values."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from train.data.sources import Source

REQUIRED = MISSING


class Limit(NamedTuple):
    """Which values of a key's type are good, in words and as a test. None, where a key takes it, is always good."""

    want: str
    holds: Callable[[Any], bool]


COUNT = Limit("at least 1", lambda n: n >= 1)
POSITIVE = Limit("above 0", lambda x: 0 < x < math.inf)
NATURAL = Limit("at least 0", lambda x: 0 <= x < math.inf)
FRACTION = Limit("at least 0 and below 1", lambda x: 0 <= x < 1)
STEPS = Limit("-1 or at least 1", lambda n: n == -1 or n >= 1)
WARMUP = Limit("a share below 1 or a whole number", lambda x: 0 <= x < 1 or (x >= 1 and x % 1 == 0))
SOURCES = Limit("each a Source", lambda them: all(isinstance(one, Source) for one in them))
SOME_SOURCES = Limit("at least one Source", lambda them: bool(them) and SOURCES.holds(them))


def one_of(*names: str) -> Limit:
    return Limit(f"one of {', '.join(names)}", lambda value: value in names)


def some_of(*names: str) -> Limit:
    """One or more of them, none twice; or "none" alone."""
    want = f"none alone or some of {', '.join(names)}, each once"
    return Limit(want, lambda them: them == ("none",) or 0 < len(them) == len({*them} & {*names}))


def key(default: Any, help: str, limit: Limit | None = None) -> Any:
    """A field with its help. The default {} is a new one for every instance."""
    metadata = {"help": help, "limit": limit}
    if default == {}:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Keys of one owner: each within its limit, and none that contradicts another."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            limit, value = field.metadata.get("limit"), getattr(self, field.name)
            if limit is not None and value is not None and not limit.holds(value):
                raise ValueError(f"{field.name}: want {limit.want}, got {value!r}")
        if found := "; ".join(self.contradictions()):
            raise ValueError(found)

    def contradictions(self) -> Iterator[str]:
        """Each a line that names the keys."""
        yield from ()


def check_json(name: str, path: Path) -> None:
    """A file that holds a JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as wrong:
        raise ValueError(f"{name}: want a JSON object in {str(path)!r}, got {wrong}") from wrong
    if not isinstance(found, dict):
        raise ValueError(f"{name}: want a JSON object in {str(path)!r}, got {type(found).__name__}")
