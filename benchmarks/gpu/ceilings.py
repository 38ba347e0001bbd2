"""What this card reaches at best, at the size of a head: python -m benchmarks.gpu.ceilings

A copy of its memory, and each of a step's three products by the library in one call: into the operands' dtype, into
fp32, and added to fp32 in place, which is what the Triton backend asks the library for. Each is checked, then timed by
the device's clock in turn with the others; what this torch or device does not have is shown as missing.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.ceilings import COPY, PRODUCTS, Ceiling
from benchmarks.records import append, command_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WAYS = ("", ", fp32 out", ", added to fp32")
CORNER = 64  # rows and columns that are checked, the last ones
TOLERANCE = {"": 1e-2, WAYS[1]: 1e-4, WAYS[2]: 1e-4}  # relative in norm; an output of 16 bits is rounded to them


class Subject(NamedTuple):
    """A product a b in one of WAYS, and where it goes."""

    what: str
    way: str
    a: Tensor  # [M, K]
    b: Tensor  # [K, N]
    out: Tensor  # [M, N]

    def run(self) -> None:
        if self.way == WAYS[0]:
            torch.mm(self.a, self.b, out=self.out)
        elif self.way == WAYS[1]:
            torch.ops.aten.mm.dtype_out(self.a, self.b, torch.float32, out=self.out)
        else:
            torch.ops.aten.addmm.dtype_out(self.out, self.a, self.b, torch.float32, out=self.out)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    device, command = torch.device(args.device), command_of("gpu.ceilings", arguments)
    size: dict[str, Any] = {"dtype": args.dtype, "tokens": args.N, "D": args.D, "V": args.V}
    common: dict[str, Any] = {**measure.environment(), "bench": "ceilings", "command": command, "rounds": args.rounds}
    found = [_copy(args, device, common)]
    flops = 2.0 * args.N * args.D * args.V
    for what in PRODUCTS:  # one after the other, so that no more than its own matrices exist
        steps = {subject.way: subject.run for subject in _possible(what, args, device)}
        times = measure.interleaved(steps, rounds=args.rounds, warmup=args.warmup)
        for way, time in times.items():
            speed = 1e-12 * flops / time.median
            found.append(Ceiling(**common, **size, **_ms(time), what=what + way, tflops=speed, gb_per_s=None))
            print(f"{what + way:<28} {1e3 * time.median:>9.3f} ms {speed:>9.2f} TF/s", flush=True)
    for row in found if args.save else ():
        append(args.save, dataclasses.asdict(row))


def _copy(args: argparse.Namespace, device: torch.device, common: dict[str, Any]) -> Ceiling:
    source = torch.randint(0, 1 << 30, (args.copy_mib << 18,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    if not torch.equal(target, source):
        raise RuntimeError("the copy is no copy")
    time = measure.interleaved({COPY: lambda: target.copy_(source)}, rounds=args.rounds, warmup=args.warmup)[COPY]
    speed = 2e-9 * source.nbytes / time.median
    print(f"{COPY:<28} {1e3 * time.median:>9.3f} ms {speed:>9.1f} GB/s, read and written, of {args.copy_mib} MiB")
    nothing: dict[str, Any] = dict.fromkeys(("dtype", "tokens", "D", "V", "tflops"))
    return Ceiling(**common, **nothing, **_ms(time), what=COPY, gb_per_s=speed)


def _possible(what: str, args: argparse.Namespace, device: torch.device) -> Iterator[Subject]:
    """The ways there are, each found right."""
    h, w, z = _operands(args, device)
    a, b = {PRODUCTS[0]: (h, w.T), PRODUCTS[1]: (z, w), PRODUCTS[2]: (z.T, h)}[what]
    for way in WAYS:
        dtype = a.dtype if way == WAYS[0] else torch.float32
        subject = Subject(what, way, a, b, torch.zeros(a.shape[0], b.shape[1], dtype=dtype, device=device))
        try:
            subject.run()
        except (RuntimeError, NotImplementedError) as refusal:
            print(f"{what + way:<28} missing: {' '.join(str(refusal).split())[:80]}", flush=True)
            continue
        error = off_by(subject)
        if not error <= TOLERANCE[way]:
            raise RuntimeError(f"{what}{way}: off by {error:.1e}, not timed")
        yield subject


def _operands(args: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    random, dtype = torch.Generator(device).manual_seed(0), DTYPES[args.dtype]

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=random, device=device, dtype=dtype)

    return normal(args.N, args.D), normal(args.V, args.D) / args.D**0.5, normal(args.N, args.V)


def off_by(subject: Subject) -> float:
    """Of the last rows and columns, relative in norm, after one run into zeros."""
    exact = subject.a[-CORNER:].double() @ subject.b[:, -CORNER:].double()
    return float((subject.out[-CORNER:, -CORNER:].double() - exact).norm() / exact.norm())


def _ms(timing: measure.Timing) -> dict[str, Any]:
    return dict(zip(("ms", "low_ms", "high_ms"), (1e3 * seconds for seconds in timing), strict=True))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.ceilings", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--N", type=int, default=4096)
    parser.add_argument("--D", type=int, default=4096)
    parser.add_argument("--V", type=int, default=128256)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--copy-mib", type=int, default=4096, help="MiB read, and as many written")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds of each before the first round")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to see that it runs")
    parser.add_argument("--save", type=Path, help="append JSON lines to this file")
    args = parser.parse_args(arguments)
    for name in ("N", "D", "V", "copy_mib", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU here")
    return args


if __name__ == "__main__":
    main()
