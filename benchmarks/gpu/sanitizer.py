"""compute-sanitizer over the kernels at small shapes: reads and writes out of bounds, and races in shared memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.parts import Part, not_installed, python

NAME = "compute-sanitizer"
TOOLS = {"memcheck": 75.0, "racecheck": 90.0}  # seconds
ERROR = 86  # exit code of the tool where it has found something, and of no test run
# every tensor its own allocation, or a read past its end falls into a neighbour and is not seen
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTORCH_CUDA_ALLOC_CONF": ""}


def find() -> str | None:
    """On PATH, or in a CUDA folder."""
    if found := shutil.which(NAME):
        return found
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    homes += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    for home in homes:
        for inside in ("bin", "compute-sanitizer"):
            if os.access(home / inside / NAME, os.X_OK) and (home / inside / NAME).is_file():
                return str(home / inside / NAME)
    return None


def parts(item: int) -> Iterator[Part]:
    found, absent = find(), not_installed("pytest")
    missing = f"{NAME} is neither on PATH nor in a CUDA folder" if found is None else absent
    tests = python("-m", "pytest", "tests/gpu/test_small.py", "-q", "-o", "addopts=", "-p", "no:cacheprovider")
    for tool, seconds in TOOLS.items():
        name = f"sanitizer: {tool}"
        if found is None or missing:
            yield Part(name=name, item=item, missing=missing)
            continue
        options = ("--tool", tool, "--error-exitcode", str(ERROR), "--target-processes", "application-only")
        yield Part(name=name, item=item, command=(found, *options, *tests), seconds=seconds, environment=ENVIRONMENT)
