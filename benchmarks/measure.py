"""How things are measured: interleaved rounds, medians and quartiles, and the peak of a process of its own."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from expo_kernels.fused_expo_loss import expo_loss

ROOT = Path(__file__).parent.parent
CLEAR_PEAK = Path("/proc/self/clear_refs")


class Timing(NamedTuple):
    """Seconds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile


def interleaved(
    steps: Mapping[str, Callable[[], object]], *, rounds: int = 7, warmup: float = 1.0
) -> dict[str, Timing]:
    """Every step once a round, in turn, so that a noisy machine is noisy for all; `warmup` seconds of each before.

    Compare only the timings of one call with each other.
    """
    for step in steps.values():
        end = time.perf_counter() + warmup
        step()
        while time.perf_counter() < end:
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            _synchronize()
            begin = time.perf_counter()
            step()
            _synchronize()
            seconds[name].append(time.perf_counter() - begin)
    return {name: _summary(values) for name, values in seconds.items()}


def peak_bytes(target: str, **arguments: object) -> int:
    """Peak bytes that a step adds to a process: `target` is "module:function", the function makes the inputs from the
    arguments and returns the step. It runs in a process of its own, after one step on a small warm-up of torch."""
    command = [sys.executable, "-m", "benchmarks.measure", target, json.dumps(arguments)]
    # freed memory must go back at once, or the step would live in what making the inputs left behind
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{target} failed in its own process:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def environment() -> dict[str, Any]:
    """What a figure has to name: device, versions, commit, date."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{_cpu_name()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def _summary(seconds: list[float]) -> Timing:
    if len(seconds) < 2:
        return Timing(seconds[0], seconds[0], seconds[0])
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _status(field: str) -> int:
    """VmHWM (peak) or VmRSS of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; peak_bytes needs Linux")


def _reset_peak() -> None:
    try:
        CLEAR_PEAK.write_text("5")
    except OSError as error:  # a sandbox without it: the peak so far must then not exceed what stands
        if _status("VmHWM") > _status("VmRSS") + (64 << 20):
            raise RuntimeError("the peak of making the inputs cannot be told from the step's here") from error


def _load_libraries() -> None:
    """A small step first: torch loads 150 MB of modules at the first custom op, and none of it is the step's."""
    hidden, weight = torch.randn(2, 1, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    expo_loss(hidden, weight, torch.ones(2, 1, dtype=torch.long), variant="comp", lam=1.0).loss.backward()


def _child(target: str, arguments: dict[str, object]) -> int:
    """The bytes that one step adds at its peak."""
    _load_libraries()
    module, function = target.split(":")
    step = getattr(importlib.import_module(module), function)(**arguments)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    _reset_peak()
    before = _status("VmRSS")
    step()
    return max(_status("VmHWM") - before, 0)


if __name__ == "__main__":
    print(_child(sys.argv[1], json.loads(sys.argv[2])))
