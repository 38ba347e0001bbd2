"""The command line, `--config FILE.yaml --key value ...`, and its YAML file -> Settings; Settings -> YAML.

Both go through one typed reader. What is unknown, given twice or of the wrong type ends the program with status 2.
"""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import difflib
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from train.data.sources import Source
from train.settings import INSTEAD, Settings, rules
from train.yaml_text import dump_yaml, read_yaml

NONE = ("none", "null")
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
GROUPS: Mapping[str, type] = get_type_hints(Settings)
NOTES = """
A list takes several values, or one YAML list. A mapping takes YAML or JSON, and a dot changes one entry:
--objective_args.beta 0.2. A source is a path or a mapping, '{path: a.jsonl, weight: 2}'. --a-b is --a_b, --key=value is
--key value, and where none means something, so does null.
"""


class Key(NamedTuple):
    group: str
    field: dataclasses.Field[Any]
    hint: Any

    @property
    def default(self) -> Any:
        """MISSING where the key is required."""
        return {} if self.field.default_factory is dict else self.field.default


KEYS: Mapping[str, Key] = {
    field.name: Key(group, field, get_type_hints(owner)[field.name])
    for group, owner in GROUPS.items()
    for field in dataclasses.fields(owner)
}


def write_yaml(settings: Settings, path: str | Path) -> None:
    """The resolved configuration; --config with this file gives equal settings."""
    dump_yaml(settings.to_dict(), Path(path))


class Scalar(NamedTuple):
    """A type of one value: in words, what it may be read from, and how."""

    want: str
    takes: tuple[type, ...]
    read: Callable[[Any], Any]


SCALARS: Mapping[type, Scalar] = {
    bool: Scalar("true or false", (bool, str), lambda raw: raw if isinstance(raw, bool) else SWITCH[raw.lower()]),
    int: Scalar("an integer", (int, str), int),
    float: Scalar("a number", (int, float, str), float),
    str: Scalar("text", (str,), str),
}


def convert(where: str, hint: Any, raw: Any) -> Any:
    """What YAML made of a value, or its text on the command line -> a value of the key's type."""
    hint, others = _first(hint)
    if types.NoneType in others and (raw is None or (isinstance(raw, str) and raw.lower() in NONE)):
        return None
    if isinstance(raw, str) and any(raw in get_args(other) for other in others):
        return raw
    if hint is Any:
        return raw
    if get_origin(hint) is tuple:
        element = get_args(hint)[0]
        if isinstance(raw, list):
            return tuple(convert(f"{where}[{i}]", element, one) for i, one in enumerate(raw))
        return (convert(where, element, raw),)
    if get_origin(hint) is collections.abc.Mapping:
        if not isinstance(raw, dict):
            raise ValueError(f"{where}: want a mapping, got {raw!r}")
        value = get_args(hint)[1]
        return {convert(where, str, name): convert(f"{where}.{name}", value, one) for name, one in raw.items()}
    if hint is Source:
        return _to_source(where, raw)
    want, takes, read = SCALARS[hint]
    try:
        if isinstance(raw, takes) and raw != "" and (hint is bool or not isinstance(raw, bool)):
            return read(raw)
    except (ValueError, KeyError, OverflowError):
        pass  # the same message as for a wrong type
    raise ValueError(f"{where}: want {want}, got {raw!r}")


def _first(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """X | None -> X, (None,): what a key is read as, and what else it may be: None, or words in a Literal."""
    parts = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    return parts[0], parts[1:]


def _to_source(where: str, raw: Any) -> Source:
    given = {"path": raw} if isinstance(raw, str) else raw
    if not isinstance(given, dict) or "path" not in given:
        raise ValueError(f"{where}: want a path or a mapping with one, got {raw!r}")
    hints = get_type_hints(Source)
    _check_known(where, given, hints)
    values = {name: convert(f"{where}.{name}", hints[name], one) for name, one in given.items()}
    try:
        return Source(**values)
    except ValueError as wrong:
        raise ValueError(f"{where}: {wrong}") from wrong


def _check_known(where: str, names: Iterable[Any], valid: Collection[str]) -> None:
    for name in names:
        if name not in valid:
            close = difflib.get_close_matches(str(name), valid, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "--help lists the known ones"
            raise ValueError(f"{where}: unknown key {name!r} ({hint})")


class Option(NamedTuple):
    """--key value ..., or --key.entry value of a mapping."""

    key: str
    entry: str | None
    values: list[str]

    @property
    def name(self) -> str:
        return self.key if self.entry is None else f"{self.key}.{self.entry}"


def _options(argv: Sequence[str]) -> list[Option]:
    options: list[Option] = []
    takes_more = False
    for token in argv:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            key, dot, entry = name.partition(".")
            option = Option(key.replace("-", "_"), entry if dot else None, [value] if equals else [])
            if option.key != "local_rank" and option.name in (other.name for other in options):
                raise ValueError(f"{option.name}: want it once, got it twice")
            options.append(option)
            takes_more = not equals
        elif takes_more:
            options[-1].values.append(token)
        else:
            raise ValueError(f"command line: want --key value, got {token!r}")
    for ignored in (option for option in options if option.key == "local_rank"):
        _one(ignored)
    return [option for option in options if option.key != "local_rank"]


def _one(option: Option) -> str:
    if len(option.values) != 1:
        raise ValueError(f"{option.name}: want one value, got {option.values}")
    return option.values[0]


def _raw(option: Option) -> Any:
    """The option's text, taken for YAML where a list or a mapping is written in one value."""
    hint, _ = _first(KEYS[option.key].hint)
    kind = get_origin(hint)
    if kind is collections.abc.Mapping:
        text = _one(option)
        return text if option.entry is not None and get_args(hint)[1] is str else read_yaml(option.name, text)
    if option.entry is not None:
        raise ValueError(f"{option.name}: want an entry of a mapping, got one of {option.key}")
    if kind is not tuple:
        return True if hint is bool and not option.values else _one(option)
    if not option.values:
        raise ValueError(f"{option.name}: want at least one value, got none")
    found = [read_yaml(option.name, text) if text.startswith(("[", "{")) else text for text in option.values]
    return found[0] if len(found) == 1 else found


def _from_file(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as wrong:
        raise ValueError(f"config: want a YAML file, got {path!r}: {wrong}") from wrong
    found = read_yaml(path, text)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: want a mapping of keys, got {found!r}")
    _check_known(path, found, KEYS)
    return {name: convert(f"{path}: {name}", KEYS[name].hint, raw) for name, raw in found.items()}


def _override(values: dict[str, Any], options: Sequence[Option]) -> dict[str, Any]:
    """Whole keys first, then single entries of mappings."""
    _check_known("command line", (option.key for option in options), KEYS)
    whole = {one.key: convert(one.key, KEYS[one.key].hint, _raw(one)) for one in options if one.entry is None}
    merged = {**values, **whole}
    for ruled, ruler in INSTEAD.items():  # what the file says of the same thing in other words gives way
        if rules(whole.get(ruler)) and ruled not in whole:
            merged.pop(ruled, None)
        if ruled in whole and ruler not in whole:
            merged.pop(ruler, None)
    for option in (one for one in options if one.entry is not None):
        raw = {option.entry: _raw(option)}
        if option.entry in whole.get(option.key, ()):
            raise ValueError(f"{option.name}: want it once, got it in {option.key} as well")
        merged[option.key] = {**merged.get(option.key, {}), **convert(option.key, KEYS[option.key].hint, raw)}
    return merged


def _settings(argv: Sequence[str]) -> Settings:
    options = _options(argv)
    files = [_one(option) for option in options if option.name == "config"]
    values = _override(_from_file(files[0]) if files else {}, [one for one in options if one.name != "config"])
    if missing := [name for name, key in KEYS.items() if key.default is dataclasses.MISSING and name not in values]:
        raise ValueError(f"want the required keys {', '.join(missing)}, on the command line or in --config")
    for ruled, ruler in INSTEAD.items():
        if ruled in values and rules(values.get(ruler)):
            raise ValueError(f"{ruler} and {ruled}: want one of them, got both")
    groups = {
        group: owner(**{name: value for name, value in values.items() if KEYS[name].group == group})
        for group, owner in GROUPS.items()
    }
    return Settings(**groups)


def _shown(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "required"
    plain = " ".join(default) or "[]" if isinstance(default, tuple) else default
    return f"default: {str(plain).lower() if plain is None or isinstance(plain, bool) else plain}"


class Told(NamedTuple):
    """A key for people: what its value is, its meaning and limit, its default."""

    kind: str
    meaning: str
    default: str


def told(key: Key) -> Told:
    hint, _ = _first(key.hint)
    several = get_origin(hint) is tuple
    kind = get_args(hint)[0] if several else hint
    limit = key.field.metadata["limit"]
    meaning = "; ".join([key.field.metadata["help"], *([limit.want] if limit else [])])
    return Told(kind.__name__.upper() + (" ..." if several else ""), meaning, _shown(key.default))


def _parser() -> argparse.ArgumentParser:
    """Of argparse the help and the errors; its reading knows neither lists in YAML nor entries of mappings."""
    usage = "train/run.py [--config FILE.yaml] --key value ..."
    parser = argparse.ArgumentParser("train/run.py", usage, description=NOTES, add_help=False, allow_abbrev=False)
    general = parser.add_argument_group("general")
    general.add_argument("-h", "--help", action="store_true", help="show this and stop")
    general.add_argument("--config", metavar="FILE.yaml", help="keys in YAML; the command line overrides them")
    general.add_argument("--local_rank", metavar="INT", help="ignored: some launchers pass it")
    for group, owner in GROUPS.items():
        section = parser.add_argument_group(group, owner.__doc__)
        for name, key in ((name, key) for name, key in KEYS.items() if key.group == group):
            kind, meaning, default = told(key)
            section.add_argument(f"--{name}", metavar=kind, help=f"{meaning}; {default}".replace("%", "%%"))
    return parser


def parse(argv: Sequence[str]) -> Settings:
    """The arguments after the program's name -> Settings; SystemExit with status 2 and a message where they are bad."""
    parser = _parser()
    if "--help" in argv or "-h" in argv:
        parser.print_help()
        raise SystemExit(0)
    try:
        return _settings(argv)
    except (ValueError, TypeError) as wrong:
        parser.error(str(wrong))
