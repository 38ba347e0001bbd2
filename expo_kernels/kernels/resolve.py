"""Which backend a device gets, and why."""

from __future__ import annotations

import importlib
import os
from typing import NamedTuple

import torch

from expo_kernels.kernels import plain
from expo_kernels.kernels.contract import Backend
from expo_kernels.kernels.native import csrc

VARIABLE = "EXPO_KERNELS_BACKEND"
NAMES = ("plain", "triton", "native")
OLDEST_TRITON = (3, 5)
INSTRUCTIONS = {
    "portable": "no vector instructions that they know",
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "avx512_bf16": "AVX-512 with bf16",
}
_LOADED: dict[str, Backend] = {"plain": plain.BACKEND}


class Resolution(NamedTuple):
    backend: Backend
    reason: str


def resolve(name: str, device: torch.device) -> Resolution:
    """name "auto" (or EXPO_KERNELS_BACKEND, which stands in for "auto") or a backend's name -> the backend."""
    chosen, source = name, "asked for by name"
    if name == "auto" and (variable := os.environ.get(VARIABLE)):
        chosen, source = variable, f"{VARIABLE} is set"
    if chosen == "auto":
        return _best(device)
    if chosen not in NAMES:
        raise ValueError(f"backend: want auto, {', '.join(NAMES)}, got {chosen!r} ({source})")
    if problem := _why_not(chosen, device):
        raise NotImplementedError(f"backend {chosen!r} on {device.type} ({source}): {problem}")
    return Resolution(_load(chosen), source)


def _best(device: torch.device) -> Resolution:
    """Triton on a card it serves, the C++ kernels on a CPU; plain everywhere else."""
    if device.type == "cuda":
        problem = _why_not("triton", device) or _too_old(device)
        if not problem:
            return Resolution(_load("triton"), "Triton's kernels run on NVIDIA and AMD cards")
        return Resolution(_load("plain"), f"plain torch runs on every device (triton: {problem})")
    problem = _why_not("native", device)
    if not problem:
        return Resolution(_load("native"), f"the C++ kernels are built, and this processor has {_level()}")
    return Resolution(_load("plain"), f"plain torch runs on every device, {device.type} included (native: {problem})")


@torch.compiler.assume_constant_result
def _why_not(name: str, device: torch.device) -> str:
    """Empty where the backend can serve the device."""
    if name == "native":
        return csrc.problem() if device.type == "cpu" else "the C++ kernels serve the CPU"
    if name != "triton":
        return ""
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"want triton {'.'.join(map(str, OLDEST_TRITON))} or newer, got {triton.__version__}"
    interpreted = bool(triton.knobs.runtime.interpret)
    if device.type == "cpu" and not interpreted:
        return "on a CPU its kernels run in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts"
    if device.type not in ("cpu", "cuda"):
        return "its kernels serve cuda devices (NVIDIA, AMD)"
    return ""


def _too_old(device: torch.device) -> str:
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"the kernels want compute capability 8.0 or newer, got {torch.cuda.get_device_capability(device)}"
    return ""


@torch.compiler.assume_constant_result
def _level() -> str:
    return INSTRUCTIONS[csrc.level()]


def _load(name: str) -> Backend:
    """Triton's module is imported when first asked for: a machine without Triton still has plain."""
    if name not in _LOADED:
        _LOADED[name] = importlib.import_module(f"expo_kernels.kernels.{name}").BACKEND
    return _LOADED[name]
