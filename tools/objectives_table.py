"""python -m tools.objectives_table --write renews the tables of objectives in README.md and docs/objectives.md.

Everything in them is read off the classes: name, formula, paper, needs, parameters, docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from expo_kernels.objectives import OBJECTIVES, make_objective
from expo_kernels.types import Needs
from tools import marked

EXAMPLES: dict[str, dict[str, Any]] = {
    "expo_reg": {"lam": 0.2},
    "expo_comp": {"lam": 0.05, "samples": "anchors"},
    "gpo": {"shape": "logistic"},
    "fdpo": {"divergence": "js"},
}
PAGES = {
    "objectives, in short": marked.README,
    "objectives": marked.DOCS / "objectives.md",
    "objectives, one by one": marked.DOCS / "objectives.md",
}


def generated() -> dict[str, str]:
    """Marker -> text."""
    short = [(f"`{name}`", _formula(name), _reads(name)) for name in OBJECTIVES]
    full = [(*line, _paper(line[0].strip("`")), _parameters(line[0].strip("`"))) for line in short]
    return {
        "objectives, in short": marked.table(("name", "loss of a group", "reads"), short),
        "objectives": marked.table(("name", "loss of a group", "reads", "paper", "parameters"), full),
        "objectives, one by one": "\n\n".join(_page(name) for name in OBJECTIVES),
    }


def _formula(name: str) -> str:
    return OBJECTIVES[name].formula.replace("|", "\\|")  # type: ignore[attr-defined]


def _reads(name: str) -> str:
    needs: Needs = make_objective(name, **EXAMPLES.get(name, {})).needs
    groups = {1: "single responses", 2: "pairs", None: "lists"}.get(needs.roles, f"groups of {needs.roles}")
    parts = [
        groups,
        "references" if needs.several_references else "reference" if needs.reference else "",
        *(f"column {column}" for column in needs.columns + needs.sequence_columns),
        "anchors" if needs.anchor_scale is not None else "",
        "forward-only sequences" if needs.forward_only else "",
        "lengths" if needs.lengths else "",
    ]
    return ", ".join(part for part in parts if part)


def _paper(name: str) -> str:
    """ "2305.18290, eq. 7; robust: 2403.00409" with its numbers as links."""
    return re.sub(r"\d{4}\.\d{5}", r"[\g<0>](https://arxiv.org/abs/\g<0>)", OBJECTIVES[name].paper)  # type: ignore[attr-defined]


def _parameters(name: str) -> str:
    fields = dataclasses.fields(OBJECTIVES[name])
    own = [f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}" for f in fields]
    other = [f"{also} for {key}" for also, key in getattr(OBJECTIVES[name], "also_called", {}).items()]
    return ", ".join(own) + (f" ({', '.join(other)})" if other else "")


def _page(name: str) -> str:
    return f"### `{name}`\n\n{inspect.getdoc(OBJECTIVES[name])}"


if __name__ == "__main__":
    marked.command(__doc__, PAGES, generated)
