"""Items 1 to 4 of the list for a machine with a GPU, in ten minutes: python -m benchmarks.gpu.check (make gpu-check)

1  every kernel, dtype and objective against float64, real sizes, bits; compute-sanitizer      2  the card's ceilings
3  the head: all gradients, a frozen head, forward only      4  its peers in the same run

A part that fails or takes too long is reported, and the others go on; what is not installed is reported as missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import command, head_parts, sanitizer
from benchmarks.parts import Part, not_installed, python

BUDGET = 570.0  # seconds: ten minutes with what comes before and after
PARITY = "test_loss_and_gradients"
WORKERS = 6  # test processes that share the card, where pytest-xdist is there


def build(folder: Path, facts: dict[str, Any]) -> list[Part]:
    """What is cut off, if the budget ends, stands last."""
    first, *others = head_parts.MODELS
    return [
        Part(name="backends", item=1, command=python("-m", "expo_kernels"), seconds=40.0),
        *tests(),
        ceilings(folder),
        *(head_parts.part(heads, folder, facts) for heads in head_parts.runs(first)),
        *sanitizer.parts(item=1),
        *(head_parts.part(heads, folder, facts) for model in others for heads in head_parts.runs(model)),
        *head_parts.sparse(),
    ]


def tests() -> Iterator[Part]:
    missing = not_installed("pytest")
    shared = () if not_installed("xdist") else ("-n", WORKERS)
    for name, chosen, more, seconds in (
        ("tests: sizes, bits, graphs", f"not {PARITY}", (), 120.0),
        ("tests: loss and gradients", PARITY, shared, 150.0),
    ):
        arguments = ("-m", "pytest", "tests/gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-k", chosen, *more)
        if missing:
            yield Part(name=name, item=1, missing=missing)
        else:
            yield Part(name=name, item=1, command=python(*arguments), seconds=seconds)


def ceilings(folder: Path) -> Part:
    save = folder / "ceilings.jsonl"
    arguments = python("-m", "benchmarks.gpu.ceilings", "--save", save)
    return Part(name="ceilings", item=2, command=arguments, seconds=60.0, save=save)


def main(arguments: list[str] | None = None) -> int:
    return command.main("check", __doc__, build, BUDGET, arguments)


if __name__ == "__main__":
    sys.exit(main())
