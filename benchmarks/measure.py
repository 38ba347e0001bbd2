"""How things are measured: interleaved rounds, medians and quartiles, and the peak of a process of its own."""

from __future__ import annotations

import ctypes
import datetime
import functools
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from expo_kernels.fused_expo_loss import expo_loss

ROOT = Path(__file__).parent.parent
CLEAR_PEAK = Path("/proc/self/clear_refs")
CACHE = 256 << 20  # bytes; more than the L2 of any card
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
DONE = "peak bytes:"  # what a child puts before each of its figures


class Timing(NamedTuple):
    """Seconds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile


def interleaved(
    steps: Mapping[str, Callable[[], object]], *, rounds: int = 7, warmup: float = 1.0
) -> dict[str, Timing]:
    """samples, summed up. Compare only the timings of one call with each other."""
    return {name: summary(values) for name, values in samples(steps, rounds=rounds, warmup=warmup).items()}


def samples(
    steps: Mapping[str, Callable[[], object]], *, rounds: int = 7, warmup: float = 1.0
) -> dict[str, list[float]]:
    """Seconds of every step once a round, after `warmup` seconds of each."""
    for step in steps.values():
        warm(step, warmup)
    return taken_turns(steps, rounds)


def warm(step: Callable[[], object], seconds: float) -> None:
    """At least one call."""
    keep_memory()
    end = time.perf_counter() + seconds
    step()
    _synchronize()
    while time.perf_counter() < end:
        step()
        _synchronize()


@functools.cache
def keep_memory() -> None:
    """What a step frees stays with this process from now on, as it does under jemalloc or tcmalloc. glibc gives large
    blocks back, and a step would pay for what ran before it: the first touch of a page is the system's work, and its
    host's too where a virtual machine hands freed pages back (docs/log.md). Naive code, which takes the most memory,
    gains the most."""
    if not (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # not glibc
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)


def taken_turns(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step once a round, in turn, so that a noisy machine is noisy for all. On a GPU by its own clock,
    and with its cache emptied before each, of what the step or another left there."""
    clock = _device_clock() if torch.cuda.is_available() else _host_clock
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(clock(step))
    return seconds


def _host_clock(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _device_clock() -> Callable[[Callable[[], object]], float]:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    filler = torch.empty(CACHE, dtype=torch.int8, device="cuda")

    def clock(step: Callable[[], object]) -> float:
        filler.zero_()
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    return clock


def summary(seconds: Sequence[float]) -> Timing:
    """Median and quartiles."""
    if len(seconds) < 2:
        return Timing(seconds[0], seconds[0], seconds[0])
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high)


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Of log y against log x by least squares: 1 where y grows as x does. None without two different x, or where a y
    has no logarithm."""
    if len(set(x)) < 2 or min(y) <= 0:
        return None
    logs = [torch.tensor(values, dtype=torch.float64).log() for values in (x, y)]
    at, value = (v - v.mean() for v in logs)
    return float((at * value).sum() / at.square().sum())


# memory


def peak_bytes(target: str, **arguments: object) -> int:
    """Peak bytes that a step adds to a process, above the tensors that it returns (gradients, if it returns them):
    `target` is "module:function", the function makes the inputs from the arguments and returns the step. It runs in a
    process of its own, after one step on a small warm-up of torch."""
    found = peaks(target, [arguments])[0]
    if isinstance(found, str):
        raise RuntimeError(f"{target} failed in its own process: {found}")
    return found


def peaks(target: str, many: Sequence[Mapping[str, object]]) -> list[int | str]:
    """peak_bytes for each of `many` arguments, one after the other in one process; in place of a figure the reason,
    once the process has failed."""
    command = [sys.executable, "-m", "benchmarks.measure", target, json.dumps([dict(one) for one in many])]
    # freed memory must go back at once, or the step would live in what making the inputs left behind
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    found: list[int | str] = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith(DONE)]
    lines = done.stderr.strip().splitlines()
    why = f"exit code {done.returncode}" + (f": {lines[-1]}" if lines else "")
    return found + [why] * (len(many) - len(found))


def device_peak(step: Callable[[], object]) -> int:
    """Bytes that a step adds at its peak on the GPU, by torch's allocator, above the tensors that it returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = step()
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated() - before - _size(made), 0)


def allocated(step: Callable[[], object]) -> int:
    """Bytes that a step allocates on a CPU at its peak above what was there, by torch's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def _load_libraries() -> None:
    """A small step first: torch loads 150 MB of modules at the first custom op, and none of it is the step's."""
    hidden, weight = torch.randn(2, 1, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    expo_loss(hidden, weight, torch.ones(2, 1, dtype=torch.long), variant="comp", lam=1.0).loss.backward()


def _child(target: str, many: Sequence[Mapping[str, Any]]) -> None:
    """Prints the bytes that each step adds at its peak."""
    _load_libraries()
    module, function = target.split(":")
    make = getattr(importlib.import_module(module), function)
    for arguments in many:
        step = make(**arguments)
        gc.collect()
        print(DONE, device_peak(step) if torch.cuda.is_available() else _resident_peak(step), flush=True)
        del step  # before the next one's inputs are made


def _resident_peak(step: Callable[[], object]) -> int:
    _reset_peak()
    before = _status("VmRSS")
    made = step()
    return max(_status("VmHWM") - before - _size(made), 0)


def _size(made: object) -> int:
    """Bytes of a tensor, or of a tuple of them."""
    tensors = made if isinstance(made, tuple) else (made,)
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, torch.Tensor))


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


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# environment


def environment() -> dict[str, Any]:
    """What a figure has to name, as records.Environment has it."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def _commit() -> str:
    return _said("git", "describe", "--always", "--dirty", "--exclude", "*") or "unknown"


def _said(*command: str) -> str | None:
    """The first line that a program prints; None where there is no such program or it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines and not done.returncode else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    _child(sys.argv[1], json.loads(sys.argv[2]))
