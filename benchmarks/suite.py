"""What this machine's processor does, in under 15 minutes: python -m benchmarks.suite (make bench)

Measures its products first, and takes as many tokens as their speed allows; then the head in every mode and dtype, half
of it masked, a larger head, time against N, V and T, memory, error and whole steps: into benchmarks/results, one file a
date and device, from which the report is made anew. A part that fails or takes too long is reported, the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.parts import ROOT, Outcome, Part, environment, made_by, python, run, summary
from benchmarks.providers import MODES, PROVIDERS
from benchmarks.report import __main__ as report
from benchmarks.report.results import FOLDER, SAVE, device_slug, write

BUDGET, QUICK_BUDGET = 870.0, 150.0  # seconds: 15 minutes and two with what comes before and after
TRIED = ROOT / "runs" / "bench"  # what --quick writes: not results to keep
PAIRS, SHORTEST = 4, 8  # at most so many pairs, of sequences of at least so many tokens
MOST, LEAST = 2048, 16  # tokens
UNKNOWN = 256  # tokens, where no speed is known
MODEL, D, V = "small", 1024, 32000
LARGER = (2048, 64000)
# on a processor ten times as slow as the library's products, at the size where everyone is asked
SLOW = ("torch-linear-ce-chunked",)
# where nothing is masked the first is torch.compile again; the second is plain torch, in Liger's chunks of 1024 tokens
SAME = ("torch.compile-scored", "liger-scaled-ce")
MANY = tuple(name for name in PROVIDERS if name not in (*SLOW, *SAME))
OURS = tuple(name for name in PROVIDERS if PROVIDERS[name].ours)
FEW = ("naive", "torch.compile", *OURS)
PEERS = ("torch-linear-ce", "trl", "liger-preference")
MASKED = (*FEW, "torch.compile-scored", "trl", "liger-preference")


class Speed(NamedTuple):
    """Seconds of the library's three products for a token, at D and V."""

    seconds: Mapping[str, tuple[float, ...]]  # by dtype

    def tokens(self, dtype: str, mode: str, within: float, size: int = D * V) -> int:
        """The most, by doubling, whose products take no longer than so many seconds."""
        if dtype not in self.seconds:
            print(f"suite: the library's {dtype} products were not measured, so {UNKNOWN} tokens are taken")
            return UNKNOWN
        count = 1 + sum(MODES[mode])
        a_token = sum(self.seconds[dtype][:count]) * size / (D * V)
        tokens = MOST
        while tokens > LEAST and tokens * a_token > within:
            tokens //= 2
        return tokens


def speed_of(rows: Sequence[Mapping[str, Any]]) -> Speed:
    """rows: of benchmarks.ceilings."""
    found: dict[str, tuple[float, ...]] = {}
    for row in rows:
        if row["dtype"] is not None:
            a_token = 1e-3 * row["ms"] / row["tokens"] * (D * V) / (row["D"] * row["V"])
            found[row["dtype"]] = (*found.get(row["dtype"], ()), a_token)
    return Speed(found)


def parts(folder: Path, *, quick: bool) -> Iterator[Part]:
    """The first is run before the others are made: their sizes follow from it."""
    first = _part(folder, "ceilings", "ceilings", 120.0, "--seconds", 0.3 if quick else 1.0)
    yield first
    assert first.save is not None, "ceilings measure something"
    speed = speed_of([json.loads(line) for line in first.save.read_text().splitlines()] if first.save.exists() else [])
    yield from _quick(folder, speed) if quick else _whole(folder, speed)


def _whole(folder: Path, speed: Speed) -> Iterator[Part]:
    yield _head(folder, speed, "fp32", "step", 1.5, MANY)
    fast = speed.tokens("bf16", "step", 2.0) > LEAST
    yield _head(folder, speed, "bf16", "step", 2.0, (*FEW, *PEERS) if fast else ("naive", *OURS))
    scaling = ("--dtype", "fp32", "--rounds", 3, "--providers")
    yield _part(folder, "scaling in N, T", "bench_scaling", 120.0, "--axes", "tokens", "length", *scaling, *FEW)
    # fewer tokens: naive code keeps several times N V numbers
    fewer = ("--axes", "vocabulary", "--fixed-tokens", 256)
    yield _part(folder, "scaling in V", "bench_scaling", 150.0, *fewer, *scaling, "naive", *OURS)
    memory = ("--dtype", "fp32", "--providers", "naive", *OURS)
    yield _part(folder, "memory", "bench_memory", 150.0, *memory)
    yield _part(folder, "memory, forward", "bench_memory", 120.0, "--mode", "forward", "--axes", "tokens", *memory)
    yield _part(folder, "whole steps", "bench_step", 200.0, "--vocabulary", V, "--rounds", 2)
    yield _head(folder, speed, "fp32", "step", 0.5, MASKED, "--masked", 0.5, name="half masked")
    for dtype, mode in (("fp32", "forward"), ("fp32", "frozen"), *([("bf16", "forward")] if fast else [])):
        yield _head(folder, speed, dtype, mode, 0.7, FEW)
    yield _part(folder, "error", "accuracy", 90.0)
    yield _part(folder, "packing", "bench_packing", 90.0, "--rounds", 2)
    if fast:
        yield _head(folder, speed, "bf16", "step", 0.3, MASKED, "--masked", 0.5, name="half masked")
    dtype, within = ("bf16", 3.0) if fast else ("fp32", 0.7)
    yield _head(folder, speed, dtype, "step", within, FEW, shape=LARGER, name="larger")
    yield _head(folder, speed, "fp32", "step", 0.2, ("naive", *OURS, *SLOW, *SAME), name="others, fewer tokens")


def _quick(folder: Path, speed: Speed) -> Iterator[Part]:
    yield _head(folder, speed, "fp32", "step", 0.3, FEW)
    yield _head(folder, speed, "bf16", "forward", 0.1, FEW)
    yield _head(folder, speed, "fp32", "step", 0.3, FEW, "--masked", 0.5, name="half masked")
    sizes = ("--tokens", 1024, 2048, 4096, "--vocabularies", 4096, 16384, "--lengths", 16, 256)
    two = ("--dtype", "fp32", "--providers", "naive", "plain")
    yield _part(folder, "scaling", "bench_scaling", 60.0, "--rounds", 2, *sizes, *two)
    small = ("--V", 4096, "--workspace", 32 << 20, "--tokens", 1024, 4096, "--lengths", 64, 512, "--fixed-tokens", 4096)
    yield _part(folder, "memory", "bench_memory", 60.0, *small, *two)
    yield _part(folder, "error", "accuracy", 30.0, "--V", 1000, "--dtypes", "fp32", "bf16")


def _head(
    folder: Path, speed: Speed, dtype: str, mode: str, within: float, providers: Sequence[str], *more: object,
    shape: tuple[int, int] | None = None, name: str = "",
) -> Part:  # fmt: skip
    """within: seconds of the library's products."""
    tokens = speed.tokens(dtype, mode, within, shape[0] * shape[1] if shape else D * V)
    pairs = min(PAIRS, tokens // (2 * SHORTEST))
    model = MODEL if shape is None else f"{shape[0]}x{shape[1]}"
    arguments = (
        "--model", model, "--dtype", dtype, "--mode", mode, "--tokens", tokens, "--pairs", pairs, *more,
        "--rounds", 3, "--warmup", 0.0, "--no-memory", "--providers", *providers,
    )  # fmt: skip
    return _part(folder, f"head: {dtype} {mode}{', ' if name else ''}{name}", "bench_head", 240.0, *arguments)


def _part(folder: Path, name: str, module: str, seconds: float, *arguments: object) -> Part:
    """seconds: its limit."""
    save = folder / f"{name.replace(' ', '-').replace(',', '').replace(':', '')}.jsonl"
    command = python("-m", f"benchmarks.{module}", *arguments, "--save", save)
    return Part(name=name, item=4, command=command, seconds=seconds, save=save)


def main(arguments: list[str] | None = None) -> int:
    """-> the exit code: 1 where a part failed, was cut off or was not reached."""
    args = parse(arguments)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of this process and all it starts: this is the processor's set
    folder = args.logs or Path(tempfile.mkdtemp(prefix="bench-"))
    facts = environment()
    wanted = (
        part for part in parts(folder, quick=args.quick) if part.name == "ceilings" or _asked_for(part, args.only)
    )
    print(
        f"{facts['device']}, {facts['threads']} threads, {facts['simd']}, torch {facts['torch']}; {folder}\n",
        flush=True,
    )
    outcomes = run(wanted, budget=args.budget or (QUICK_BUDGET if args.quick else BUDGET), logs=folder)
    print(summary(outcomes))
    results = args.results or (TRIED if args.quick else FOLDER)
    print(f"written: {keep(outcomes, facts, results, fresh=not args.only)}")
    if results == FOLDER:
        report.main([])
    return 1 if any(outcome.broken for outcome in outcomes) else 0


def _asked_for(part: Part, only: Sequence[str]) -> bool:
    return not only or any(word in part.name for word in only)


def keep(outcomes: Sequence[Outcome], facts: Mapping[str, Any], folder: Path, *, fresh: bool) -> Path:
    """-> the results file. Not fresh: what other commands left there today stays."""
    rows = [row for outcome in outcomes for row in made_by(outcome)]
    path = folder / f"{facts['date']}-{device_slug(facts)}.json"
    known: list[Mapping[str, Any]] = []
    if path.exists() and not fresh:
        again = {SAVE.sub("", row["command"]) for row in rows}
        known = [row for row in json.loads(path.read_text())["records"] if row["command"] not in again]
    return write(folder, facts, [*known, *rows])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="two minutes, small sizes; into runs/bench, no report")
    parser.add_argument(
        "--only", nargs="+", default=[], help="parts with one of these words in their names; others stay"
    )
    parser.add_argument("--budget", type=float, help=f"seconds of all parts; default {BUDGET:.0f}")
    parser.add_argument("--logs", type=Path, help="folder for what the parts print and write; default: a new one")
    parser.add_argument("--results", type=Path, help="folder; default benchmarks/results")
    args = parser.parse_args(arguments)
    if args.budget is not None and args.budget <= 0:
        parser.error(f"--budget must be above 0, got {args.budget}")
    return args


if __name__ == "__main__":
    sys.exit(main())
