"""A name and parameters -> an objective, or an error that says what is valid."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from expo_kernels.objectives.with_sft import WithSFT
from expo_kernels.types import Objective

MIXING = ("sft_weight", "sft_reduction")


def make(known: Mapping[str, type], name: str, parameters: Mapping[str, Any]) -> Objective:
    if name not in known:
        close = difflib.get_close_matches(str(name).lower(), known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"make_objective: want one of {', '.join(sorted(known))}, got {name!r}{hint}")
    cls = known[name]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    mixable = "sft_weight" not in fields and name != "sft"
    valid = [*fields, *(MIXING if mixable else ())]
    own: dict[str, Any] = {}
    mixing: dict[str, Any] = {}
    for given, value in parameters.items():
        key = getattr(cls, "also_called", {}).get(given, given)
        if key not in valid:
            raise ValueError(f"make_objective: {name} takes {', '.join(valid)}, got {given!r}")
        chosen = own if key in fields else mixing
        if key in chosen:
            raise ValueError(f"make_objective: {name} got {key} twice, once as {given!r}")
        chosen[key] = value
    missing = [key for key, field in fields.items() if field.default is dataclasses.MISSING and key not in own]
    if missing:
        raise ValueError(f"make_objective: {name} needs {', '.join(missing)}")
    objective: Objective = cls(**own)
    if not mixing:
        return objective
    if "sft_weight" not in mixing:
        raise ValueError(f"make_objective: {name} got sft_reduction without sft_weight")
    return WithSFT(objective=objective, **mixing)
