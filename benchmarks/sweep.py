"""The same workload at one size after another: what bench_memory and bench_scaling have in common."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks import measure, options
from benchmarks.cases import Setting
from benchmarks.measured import Row
from benchmarks.records import AXES, Record

SAID = {"tokens": "tokens N", "vocabulary": "vocabulary V", "length": "tokens of a sequence T"}


class Sweep(NamedTuple):
    axis: str
    sizes: tuple[int, ...]
    settings: tuple[Setting, ...]  # one for each size


class Defaults(NamedTuple):
    D: int
    V: int
    tokens: tuple[int, ...]
    vocabularies: tuple[int, ...]
    lengths: tuple[int, ...]
    length: int
    fixed_tokens: int


def add_sizes(parser: argparse.ArgumentParser, usual: Defaults, axes: Sequence[str]) -> None:
    parser.add_argument("--axes", nargs="+", choices=axes, default=list(axes), help="what to vary, one after the other")
    parser.add_argument("--D", type=int, default=usual.D)
    parser.add_argument("--V", type=int, default=usual.V, help="where tokens or length vary")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(usual.tokens), help="N, where it varies")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(usual.lengths), help="T, where it varies")
    parser.add_argument("--length", type=int, default=usual.length, help="T, where it does not vary")
    parser.add_argument("--fixed-tokens", type=int, default=usual.fixed_tokens, help="N, where it does not vary")
    if "vocabulary" in axes:
        parser.add_argument("--vocabularies", type=int, nargs="+", default=list(usual.vocabularies), help="V")


def sweeps_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[Sweep]:
    """One for each of --axes."""

    def setting(N: int, T: int, V: int) -> Setting:
        if N < 2 * T or N % (2 * T):
            parser.error(f"want tokens a multiple of the {2 * T} of a pair of length {T}, got {N}")
        return options.setting_of(parser, args, f"{args.D}x{V}", N, N // (2 * T))

    made = []
    for axis in AXES:
        if axis not in args.axes:
            continue
        if axis == "tokens":
            sizes, settings = args.tokens, [setting(N, args.length, args.V) for N in args.tokens]
        elif axis == "vocabulary":
            sizes, settings = args.vocabularies, [setting(args.fixed_tokens, args.length, V) for V in args.vocabularies]
        else:
            sizes, settings = args.lengths, [setting(args.fixed_tokens, T, args.V) for T in args.lengths]
        made.append(Sweep(axis, tuple(sizes), tuple(settings)))
    return made


def with_slopes(sweep: Sweep, rows: list[list[Row]], value: Callable[[Record], float | None]) -> list[list[Row]]:
    """rows: those of each size. The slope of a provider over the sizes where it has a value goes into its records."""
    slopes = {}
    for name in {row.record.provider for row in rows[0]}:
        own = [
            (size, found)
            for size, made in zip(sweep.sizes, rows, strict=True)
            for row in made
            if row.record.provider == name and (found := value(row.record)) is not None
        ]
        slopes[name] = measure.slope(*zip(*own, strict=True)) if own else None
    return [
        [row._replace(record=dataclasses.replace(row.record, slope=slopes[row.record.provider])) for row in made]
        for made in rows
    ]


def show(sweep: Sweep, rows: list[list[Row]], value: Callable[[Record], float | None], unit: str) -> None:
    """A line a provider, a column a size, and the slope; why there is no figure below."""
    first = rows[0][0].record
    shape = f"D {first.D}" + ("" if sweep.axis == "vocabulary" else f", V {first.V}")
    length = "" if sweep.axis == "length" or not first.pairs else f", T {(first.tokens or 0) // (2 * first.pairs)}"
    tokens = "" if sweep.axis == "tokens" else f", N {first.tokens}"
    print(
        f"{unit} against {SAID[sweep.axis]}: {shape}{length}{tokens}, {first.dtype}, {first.kind} (entropy "
        f"{first.entropy}), mode {first.mode}\n"
        f"{first.device}, {first.threads} threads, torch {first.torch}, {first.date}, {first.commit}"
    )
    print(f"{'provider':<23} " + " ".join(f"{size:>9}" for size in sweep.sizes) + "    slope  error of loss, dh, dw")
    reasons: dict[str, None] = {}  # in order, each once
    for records in zip(*([row.record for row in made] for made in rows), strict=True):
        values = [value(record) for record in records]
        for size, record in zip(sweep.sizes, records, strict=True):
            if record.state != "timed":
                same = all(other.reason == record.reason for other in records)
                reasons[f"{record.provider:<23} {'' if same else f'at {size} '}{record.state}: {record.reason}"] = None
        if any(found is not None for found in values):
            cells = " ".join(f"{'-':>9}" if found is None else f"{found:>9.1f}" for found in values)
            slope = "-" if records[0].slope is None else f"{records[0].slope:.2f}"
            worst = [max(each) for each in zip(*(r.error for r in records if r.error), strict=True)]
            print(f"{records[0].provider:<23} {cells} {slope:>8}  " + " ".join(f"{e:.1e}" for e in worst))
    print("\n".join(reasons), *(["\n"] if reasons else []), sep="", flush=True)
