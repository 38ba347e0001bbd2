"""Which backend a device gets, and why."""

from __future__ import annotations

import os
from types import ModuleType
from typing import NamedTuple

import torch

from expo_kernels.kernels import plain

VARIABLE = "EXPO_KERNELS_BACKEND"
NOT_BUILT = {
    "triton": "the Triton kernels are not part of this version",
    "native": "the C++ kernels are not part of this version",
}
BUILT: dict[str, ModuleType] = {"plain": plain}


class Resolution(NamedTuple):
    backend: ModuleType  # satisfies contract.Backend
    reason: str


def resolve(name: str, device: torch.device) -> Resolution:
    """name "auto" (or EXPO_KERNELS_BACKEND, which stands in for "auto") or a backend's name -> the backend."""
    chosen, source = name, "asked for by name"
    if name == "auto" and (variable := os.environ.get(VARIABLE)):
        chosen, source = variable, f"{VARIABLE} is set"
    if chosen in BUILT:
        return Resolution(BUILT[chosen], source)
    if chosen in NOT_BUILT:
        raise NotImplementedError(f"backend {chosen!r} ({source}): {NOT_BUILT[chosen]}")
    if chosen != "auto":
        raise ValueError(f"backend: want auto, {', '.join([*BUILT, *NOT_BUILT])}, got {chosen!r} ({source})")
    better = "; ".join(f"{key}: {why}" for key, why in NOT_BUILT.items())
    return Resolution(plain, f"plain torch runs on every device, {device.type} included ({better})")
