"""Item 5 of the list: tiles for this card, measured: python -m benchmarks.gpu.tune (make gpu-tune)

Every kernel's candidates, a process each, then the route; every winner goes into the library's table at once
(expo_kernels/kernels/triton/tuning/cards.py). Then the tests and item 3 again, with the new row. `--only tune:` and
`--only head:` are the two halves, for who has a machine for minutes only. What is committed afterwards: the table, the
results, and docs/kernels.md as `python -m tools.machine_code --write` then renews it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import command, head_parts
from benchmarks.gpu.check import tests
from benchmarks.parts import Part, not_installed, python

BUDGET = 3600.0
KERNELS = {
    "head": 180.0,
    "capped": 180.0,
    "persistent": 180.0,
    "small": 180.0,
    "product": 180.0,
    "product_persistent": 180.0,
    "walk": 90.0,
}  # seconds
ROUTES = {"products": 60.0, "route": 90.0}  # a process each, so that the route is timed with the products taken


def build(folder: Path, facts: dict[str, Any]) -> list[Part]:
    return [
        *(_tuned(kernel, seconds, folder) for kernel, seconds in {**KERNELS, **ROUTES}.items()),
        *tests(),
        *(head_parts.part(heads, folder, facts) for model in head_parts.MODELS for heads in head_parts.runs(model)),
    ]


def _tuned(kernel: str, seconds: float, folder: Path) -> Part:
    name, save = f"tune: {kernel}", folder / f"tuning-{kernel}.jsonl"
    if missing := not_installed("triton"):
        return Part(name=name, item=5, missing=missing)
    arguments = python("-m", "tools.tuning", "--kernels", kernel, "--write", "--save", save)
    return Part(name=name, item=5, command=arguments, seconds=seconds, save=save)


def main(arguments: list[str] | None = None) -> int:
    return command.main("tune", __doc__, build, BUDGET, arguments)


if __name__ == "__main__":
    sys.exit(main())
