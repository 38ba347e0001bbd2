"""What this machine reaches at best: python -m benchmarks.ceilings

The head's three products, each by the library in one call, and a copy of memory: the roofs of the report's roofline.
Rows double until a product takes long enough to be timed, so a dtype that a machine is slow in costs no minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.cases import DTYPES
from benchmarks.records import Environment, append, command_of

PRODUCTS = ("z = h w'", "dh = z w", "dw = z' h")
COPY = "copy"
COPIED = 512 << 20  # bytes read, and as many written; more than any cache
FEWEST = 16  # rows to begin with
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class Ceiling(Environment):
    """One of PRODUCTS, or a copy."""

    command: str
    bench: str  # "ceilings"
    what: str
    dtype: str | None
    tokens: int | None
    D: int | None
    V: int | None
    ms: float
    low_ms: float
    high_ms: float
    tflops: float | None
    gb_per_s: float | None  # read and written
    rounds: int


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    command = command_of("ceilings", arguments)
    common: dict[str, Any] = {**measure.environment(), "bench": "ceilings", "command": command, "rounds": args.rounds}
    found = []
    for dtype in args.dtypes:
        tokens, timings = products(dtype, args.D, args.V, args.most, args.seconds, args.rounds)
        size: dict[str, Any] = {"dtype": dtype, "tokens": tokens, "D": args.D, "V": args.V}
        for what, timing in timings.items():
            speed = 2e-12 * tokens * args.D * args.V / timing.median
            found.append(Ceiling(**common, **size, **_ms(timing), what=what, tflops=speed, gb_per_s=None))
    timing = copy(args.rounds)
    nothing: dict[str, Any] = dict.fromkeys(("dtype", "tokens", "D", "V", "tflops"))
    found.append(Ceiling(**common, **nothing, **_ms(timing), what=COPY, gb_per_s=2e-9 * COPIED / timing.median))
    for row in found:
        print(shown(row), flush=True)
        if args.save:
            append(Path(args.save), dataclasses.asdict(row))


def _ms(timing: measure.Timing) -> dict[str, Any]:
    return dict(zip(("ms", "low_ms", "high_ms"), (1e3 * seconds for seconds in timing), strict=True))


def products(
    dtype: str, D: int, V: int, most: int, seconds: float, rounds: int
) -> tuple[int, dict[str, measure.Timing]]:
    """-> the rows that were taken, and how long each of PRODUCTS took."""
    rows = min(FEWEST, most)
    while True:
        steps = _steps(rows, D, V, DTYPES[dtype])
        if rows >= most or _once(steps) > seconds:
            return rows, measure.interleaved(steps, rounds=rounds, warmup=0.0)
        rows = min(2 * rows, most)


def _steps(N: int, D: int, V: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    h, w, z = (torch.randn(shape, dtype=dtype, device=DEVICE) for shape in ((N, D), (V, D), (N, V)))
    return dict(zip(PRODUCTS, (lambda: h @ w.T, lambda: z @ w, lambda: z.T @ h), strict=True))


def _once(steps: dict[str, Callable[[], Tensor]]) -> float:
    """Seconds of all of them."""
    began = time.perf_counter()
    for step in steps.values():
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def copy(rounds: int) -> measure.Timing:
    source = torch.zeros(COPIED // 4, device=DEVICE)
    target = torch.empty_like(source)
    return measure.interleaved({COPY: lambda: target.copy_(source)}, rounds=rounds, warmup=0.2)[COPY]


def shown(row: Ceiling) -> str:
    if row.gb_per_s is not None:
        return f"{row.what:<12} {row.gb_per_s:>9.1f} GB/s, read and written"
    size = f"{row.dtype}, N {row.tokens}, D {row.D}, V {row.V}"
    return f"{row.what:<12} {row.tflops:>9.4f} TF/s, {size}, {row.ms:.1f} ms"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ceilings", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--D", type=int, default=1024)
    parser.add_argument("--V", type=int, default=32000)
    parser.add_argument("--most", type=int, default=2048, help="rows")
    parser.add_argument("--seconds", type=float, default=1.0, help="of the three products, from which on rows do")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", help="append JSON lines to this file")
    args = parser.parse_args(arguments)
    for name in ("D", "V", "most", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return args


if __name__ == "__main__":
    main()
