"""The compiled csrc/: its operations as torch.ops, or why there are none. Nothing is loaded before it is asked for."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch

VARIABLE = "EXPO_KERNELS_CSRC"  # another build of them: a path
FILE = Path(os.environ.get(VARIABLE) or Path(__file__).parent / "_csrc.abi3.so")
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")  # of vector instructions, in the order of csrc/cpu/level.h
OLDEST_TORCH = (2, 11)  # whose stable ABI csrc/ is compiled for, as in setup.py


@functools.cache
def problem() -> str:
    """Empty where the operations are there; raises where EXPO_KERNELS_SIMD asks for what this processor has not."""
    if not FILE.exists():
        return "the C++ kernels were not built (no compiler or no torch when expo_kernels was installed; see README.md)"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return f"the C++ kernels want torch {'.'.join(map(str, OLDEST_TORCH))} or newer, got {torch.__version__}"
    try:
        torch.ops.load_library(FILE)
    except (OSError, RuntimeError) as error:
        return f"the C++ kernels cannot be loaded: {error}"
    try:
        torch.ops.expo_kernels_native.level()
    except RuntimeError as error:  # a level that is asked for and not there is nobody's default
        raise ValueError(str(error)) from error
    return ""


def ops() -> Any:
    """The operations that csrc/bindings.cpp declares."""
    if reason := problem():
        raise NotImplementedError(reason)
    return torch.ops.expo_kernels_native


@functools.cache
def level() -> str:
    """The vector instructions that the operations use; asked for once, not at every step."""
    return LEVELS[ops().level()]


def multiplies_bf16() -> bool:
    """Whether our product takes bf16 operands."""
    return level() == "avx512_bf16"


@functools.cache
def library_lags() -> bool:
    """Whether our fp32 product is faster than the library's: MKL uses AVX-512 on Intel's processors alone."""
    return ops().library_lags()
