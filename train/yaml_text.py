"""YAML as a person means it: 1e-6 is a number, 010 is ten, nothing is a date, and a key given twice is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
INTEGER = re.compile(r"[-+]?\d+$")
NUMERIC = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in them if tag.split(":")[-1] in ("null", "bool", "merge")]
        for first, them in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name.value!r} twice", name.start_mark)
            seen.add(name.value if isinstance(name, yaml.ScalarNode) else name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around whatever text _Loader would take for a number."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER, NUMERIC)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, NUMERIC)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, NUMERIC)


def read_yaml(where: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as wrong:
        raise ValueError(f"{where}: want YAML, got {' '.join(str(wrong).split())}") from wrong


def dump_yaml(values: Mapping[str, Any], path: Path) -> None:
    text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
