"""python -m expo_kernels: which backend this machine gets, and why."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

import expo_kernels
from expo_kernels.kernels.resolve import resolve


def describe() -> tuple[str, bool]:
    """One line for each fact, the last ones the backend of each device there is; and whether every device has one."""
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    lines = [
        f"expo_kernels {expo_kernels.__version__}, torch {torch.__version__}, triton {_installed('triton')}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} threads"
    ]
    complete = True
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
        try:
            found = resolve("auto", device)
        except (ValueError, NotImplementedError) as error:
            lines.append(f"{device} ({name}): no backend, because {error}")
            complete = False
        else:
            lines.append(f"{device} ({name}): backend {found.backend.name}, because {found.reason}")
    return "\n".join(lines), complete


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    text, complete = describe()
    print(text)
    sys.exit(0 if complete else 1)
