"""The objectives by name. Each is a frozen dataclass on a page of its own: formula, coefficients, what it needs."""

from __future__ import annotations

import dataclasses
import inspect

from expo_kernels.objectives.check import check_objective
from expo_kernels.objectives.expo_comp import ExpoComp
from expo_kernels.objectives.expo_reg import ExpoReg
from expo_kernels.types import Objective

OBJECTIVES: dict[str, type] = {"expo_reg": ExpoReg, "expo_comp": ExpoComp}


def make_objective(name: str, **parameters: object) -> Objective:
    """make_objective("expo_reg", lam=0.2): the objective of that name; unknown names and parameters are errors."""
    if name not in OBJECTIVES:
        raise ValueError(f"make_objective: want one of {', '.join(sorted(OBJECTIVES))}, got {name!r}")
    cls = OBJECTIVES[name]
    known = [field.name for field in dataclasses.fields(cls)]
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(f"make_objective: {name} takes {', '.join(known)}, got {parameter!r}")
    missing = [
        key
        for key, value in inspect.signature(cls).parameters.items()
        if value.default is inspect.Parameter.empty and key not in parameters
    ]
    if missing:
        raise ValueError(f"make_objective: {name} needs {', '.join(missing)}")
    return cls(**parameters)


__all__ = ["OBJECTIVES", "ExpoComp", "ExpoReg", "check_objective", "make_objective"]
