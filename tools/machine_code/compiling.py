"""Compiles what a launcher launches, for a card that is not there.

The launchers run on meta tensors, and the launch itself stops after compilation; so tile shapes, options, constants
and the divisibility of every argument are those of the runtime on whatever Triton is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Compiled(NamedTuple):
    name: str
    kernel: Any  # Triton's CompiledKernel
    options: dict[str, Any]


class _AbsentDevice:
    """As much of a driver as compilation asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> object:
        return self.target  # what compiled kernels are cached under

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def target_of(card: str) -> GPUTarget:
    return GPUTarget("hip", card, 64) if card.startswith("gfx") else GPUTarget("cuda", int(card[3:]), 32)


@contextmanager
def compiling_for(card: str) -> Iterator[list[Compiled]]:
    """Within it every launch is compiled for `card` and listed, and none runs."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("machine code: want TRITON_INTERPRET unset, since interpreted kernels are not compiled")
    found: list[Compiled] = []
    run: Callable = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append(Compiled(self.fn.__name__.lstrip("_"), kernel, options))
        return kernel

    driver.set_active(_AbsentDevice(target_of(card)))
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = run
