"""The checks of one value."""

from __future__ import annotations

import torch
from torch import Tensor


def check_type(where: str, name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{where}: want {name} a {kind.__name__}, got {type(value).__name__}")


def on_host(values: Tensor) -> bool:
    """Whether its values may be looked at: a device is never asked, and a compiler has none."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_device(where: str, name: str, values: Tensor, device: torch.device) -> None:
    if values.device != device:
        raise ValueError(f"{where}: want {name} on {device}, where hidden is, got {values.device}")


def check_finite(where: str, want: str, values: Tensor) -> None:
    if on_host(values):
        bad = ~values.isfinite()
        if bool(bad.any()):
            raise ValueError(f"{where}: want {want}, got {values[bad][0].item()}")
