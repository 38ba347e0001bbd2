"""One head in a whole training step of an 8B Llama shape: python -m benchmarks.gpu.whole_step --head ours

Random weights; weights, gradients and AdamW's states in bf16, since fp32 states of 8B weights want over 100 GiB; one
pair, a quarter of it prompt; gradient checkpointing; one GPU, which under ZeRO-3 would hold every shard itself. Where
a card has no room for all layers, fewer are measured, twice, and time and peak are extrapolated, which the rows say.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import measure
from benchmarks.gpu.whole_model import BODIES, BYTES_A_WEIGHT, Body, Stepper
from benchmarks.records import append, command_of
from benchmarks.report.results import Step

ROOM = 0.6  # of the card's memory that weights, gradients and states may take, for activations to have some
TOLERANCE = 5e-2  # between the heads, relative: bf16 rounds logits, by up to 0.06 nats a token
PARITY_LENGTH = 256
OUT_OF_MEMORY = "out of memory"


class Measured(NamedTuple):
    """A step of a pair of 2 x length, or that there was no room for it."""

    layers: int
    length: int
    rounds: int
    timing: measure.Timing | None
    standing: float | None = None  # bytes, before the step; None on a CPU
    extra: float | None = None  # bytes, the peak above them
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class WholeStep(Step):
    """As bench_step's rows, and what they do not have."""

    bench: str
    layers: int
    ms: float | None
    note: str


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    body, device = BODIES[args.model], torch.device(args.device)
    layers = args.layers or most_layers(body, _memory(device))
    print(
        f"{args.model}: {layers} of {body.layers} layers, bf16 weights, gradients and AdamW states, one pair",
        flush=True,
    )
    command = command_of("gpu.whole_step", arguments)
    for one in everything(args, body, layers, device):
        row = record(one, args, body.vocabulary, command)
        print(shown(row), flush=True)
        if args.save:
            append(args.save, dataclasses.asdict(row))


def everything(args: argparse.Namespace, body: Body, layers: int, device: torch.device) -> Iterator[Measured]:
    """As it is found: who is stopped in the middle keeps what there is."""
    found = measured(args, body, layers, device)
    yield from found
    if layers < body.layers:
        fewer = measured(args, body, layers // 2, device)
        yield from fewer
        for one, two in zip(found, fewer, strict=True):
            if one.timing and two.timing:
                yield extrapolated(one, two, body.layers)
    if args.longest:
        yield longest_pair(args, body, layers, device)


def measured(args: argparse.Namespace, body: Body, layers: int, device: torch.device) -> list[Measured]:
    """For each length the time of a step and its peak."""
    stepper = Stepper(body, layers, device, args.head)
    require_parity(stepper, min(PARITY_LENGTH, *args.lengths))
    found = []
    for length in args.lengths:
        one = Measured(layers, length, args.rounds, None, note=OUT_OF_MEMORY)
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            step = stepper.step(length)
            timing = measure.interleaved({"step": step}, rounds=args.rounds, warmup=0.0)["step"]
            one = Measured(layers, length, args.rounds, timing)
            if device.type == "cuda":
                one = one._replace(standing=torch.cuda.memory_allocated(), extra=measure.device_peak(step))
        stepper.forget()
        _give_back(device)
        found.append(one)
    return found


def extrapolated(many: Measured, few: Measured, layers: int) -> Measured:
    """What two numbers of layers say of `layers`: every layer adds the same time and the same bytes."""

    def further(one: float | None, other: float | None) -> float | None:
        if one is None or other is None:
            return None
        return one + (layers - many.layers) * (one - other) / (many.layers - few.layers)

    assert many.timing and few.timing, "asked for only where both were timed"
    seconds = further(many.timing.median, few.timing.median)
    assert seconds is not None
    return many._replace(
        layers=layers, timing=measure.Timing(seconds, seconds, seconds), standing=further(many.standing, few.standing),
        extra=further(many.extra, few.extra), note=f"extrapolated from {many.layers} and {few.layers} layers",
    )  # fmt: skip


def require_parity(stepper: Stepper, length: int) -> None:
    """A head that computes something else is not timed."""
    ours, naive = (stepper.loss_and_norms(length, head) for head in ("ours", "naive"))
    for what, one, other in zip(
        ("loss", "norm of the head's gradient", "norm of the embedding's"), ours, naive, strict=True
    ):
        if not abs(one - other) <= TOLERANCE * abs(other):
            sys.exit(f"whole_step: {what}: ours {one:.6g}, naive {other:.6g}; not timed")


def longest_pair(args: argparse.Namespace, body: Body, layers: int, device: torch.device) -> Measured:
    stepper = Stepper(body, layers, device, args.head)
    times: dict[int, measure.Timing] = {}

    def fits(length: int) -> bool:
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            times[length] = measure.Timing(*[_once(stepper.step(length), device)] * 3)
        stepper.forget()
        _give_back(device)
        took = f"fits, {times[length].median:.2f} s" if length in times else "does not fit"
        print(f"  a pair of 2 x {length} {took}", flush=True)
        return length in times

    length = bisect(fits, args.grain, args.most)
    if not length:
        raise RuntimeError(f"not even a pair of 2 x {args.grain} fits")
    ended = "; no longer one was tried" if length + args.grain > args.most else ""
    return Measured(layers, length, 1, times[length], note=f"the longest pair that fits{ended}")


def bisect(fits: Callable[[int], bool], grain: int, most: int) -> int:
    """The largest multiple of grain up to most that fits, where all smaller ones do; 0 where none does."""
    low, high = 0, 1  # in grains; low fits
    while high * grain <= most and fits(high * grain):
        low, high = high, 2 * high
    high = min(high, most // grain + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * grain) else (low, middle)
    return low * grain


def most_layers(body: Body, memory: int) -> int:
    """The most of all, half, a quarter and so on whose weights, gradients and states leave the activations room."""
    layers = body.layers
    while layers > 2 and body.weights(layers) * BYTES_A_WEIGHT > ROOM * memory:
        layers //= 2
    return layers


def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 1 << 30


def _once(step: Callable[[], object], device: torch.device) -> float:
    """Seconds. A step of the longest pairs takes half a minute, so there is no other one before it."""
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def record(one: Measured, args: argparse.Namespace, vocabulary: int, command: str) -> WholeStep:
    """Its model's name says what a reader of bench_step's columns would not see: how many layers, and how it came."""
    timing, tokens = one.timing, 2 * one.length
    name = f"{args.model}, {one.layers} layers" + (f", {one.note}" if one.note and timing else "")
    return WholeStep(
        **measure.environment(), bench="whole step", command=command, model=name, vocabulary=vocabulary, dtype="bf16",
        pairs=1, longest=one.length, rounds=one.rounds, provider=args.head, state="timed" if timing else "missing",
        reason="" if timing else one.note, ratio_compiled=None, ratio_trl=None,
        tokens_per_second=tokens / timing.median if timing else None, low=tokens / timing.high if timing else None,
        high=tokens / timing.low if timing else None, extra_peak_mib=None if one.extra is None else one.extra / 2**20,
        standing_mib=None if one.standing is None else one.standing / 2**20,
        layers=one.layers, ms=1e3 * timing.median if timing else None, note=one.note,
    )  # fmt: skip


def shown(row: WholeStep) -> str:
    size = f"{row.provider:<6} {row.layers:>3} layers, 2 x {row.longest:<6}"
    if row.ms is None:
        return f"{size} {row.state}: {row.reason}"
    standing, extra = ("-" if x is None else f"{x:.0f}" for x in (row.standing_mib, row.extra_peak_mib))
    return (
        f"{size} {row.ms:>9.1f} ms {row.tokens_per_second:>9.0f} tokens/s, standing {standing} MiB, peak above it "
        f"{extra} MiB  {row.note}"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.whole_step", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--head", choices=("ours", "naive"), required=True)
    parser.add_argument("--model", choices=BODIES, default="llama3-8b")
    parser.add_argument("--layers", type=int, help="default: all, or half, a quarter, ... by the card's memory")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="of each sequence of the pair")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-longest", dest="longest", action="store_false", help="leave out the longest pair")
    parser.add_argument("--grain", type=int, default=2048, help="of the longest pair's length")
    parser.add_argument("--most", type=int, default=1 << 17)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to see that it runs")
    parser.add_argument("--save", type=Path, help="append JSON lines to this file")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU here")
    whole = BODIES[args.model].layers
    if args.layers is not None and not (args.layers == whole or 2 <= args.layers < whole):
        parser.error(f"--layers: want {whole}, or from 2 to {whole - 1}, whose half is measured too; got {args.layers}")
    if min(args.lengths) < 8 or args.rounds < 1 or args.grain < 8:
        parser.error("--lengths and --grain must be at least 8, --rounds at least 1")
    return args


if __name__ == "__main__":
    main()
