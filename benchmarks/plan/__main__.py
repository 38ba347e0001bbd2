"""python -m benchmarks.plan --model meta-llama/Meta-Llama-3-8B-shape --gpus 8 --gpu a100-40g --tokens 16384

Predicted peak memory and step time of one rank, by part, for a naive head, Liger's, TRL's and ours: ZeRO's arithmetic,
the real model traced on fake tensors, and what a card attains. --validate compares the memory with measured runs of
small models; nothing validates the time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.plan import validate
from benchmarks.plan.cards import CARDS, USABLE, Card, card, read_ceilings, with_ceilings
from benchmarks.plan.heads import HEADS
from benchmarks.plan.job import Job
from benchmarks.plan.longest import longest
from benchmarks.plan.peak import peak
from benchmarks.plan.seconds import step
from benchmarks.plan.tables import columns, memory_rows, tables, time_rows
from benchmarks.records import append, command_of
from tools.models import MODELS, canonical


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    command = command_of("plan", arguments)
    try:
        if args.validate:
            return _validate(args.save, command)
        ceilings = [] if args.ceilings is None else read_ceilings(args.ceilings)
        if args.tables:
            print("\n".join(tables(ceilings)))
            return 0
        job, where = _job(args), card(args.gpu)
        measured = with_ceilings(where, ceilings)
        if ceilings and not measured.measured:
            raise ValueError(f"--ceilings: want bf16 products and a copy of {args.gpu}, got {_devices(ceilings)}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    _show(job, measured)
    for head in HEADS if args.save else ():
        append(args.save, record(job, head, measured, command))
    return 0


def _job(args: argparse.Namespace) -> Job:
    if args.tokens < 1 or args.pairs < 1 or args.tokens % (2 * args.pairs):
        raise ValueError(f"--tokens: want a multiple of two sequences a pair, {2 * args.pairs}, got {args.tokens}")
    return Job(
        model=canonical(args.model), ranks=args.gpus, pairs=args.pairs, length=args.tokens // (2 * args.pairs),
        masked=args.masked, checkpointing=not args.no_checkpointing, frozen_head=args.frozen_head,
        reference_engine=args.reference == "engine", offload=args.offload, workspace_bytes=args.workspace_mb << 20,
    )  # fmt: skip


def _show(job: Job, card: Card) -> None:
    source = "products and copies measured" if card.measured else "published peaks, assumed shares of them"
    print(
        f"predicted: {job.model} on {job.ranks} x {card.name} ({source}); a rank: {job.pairs} x 2 x {job.length} "
        f"positions, {job.scored} of them scored",
        "", "memory of a rank, GiB", *columns(memory_rows(job)), "",
        f"longest pair in {100 * USABLE:.0f} % of {card.memory_gib} GiB, positions of a sequence",
        *columns([["", *HEADS], ["", *(str(longest(job, head, card)) for head in HEADS)]]), "",
        "time of a step, ms (not validated)", *columns(time_rows(job, card)), sep="\n",
    )  # fmt: skip


def record(job: Job, head: str, card: Card, command: str) -> dict[str, Any]:
    """A line of JSON; memory in MiB, time in ms."""
    memory, time, shape = peak(job, head), step(job, head, card), job.shape
    return {
        **measure.environment(), "command": command, "bench": "plan", "provider": head, "state": "predicted",
        "reason": "", "model": job.model, "D": shape.head_width, "V": shape.vocabulary, "tokens": job.positions,
        "scored": job.scored, "pairs": job.pairs, "masked": job.masked, "dtype": "bf16", "gpus": job.ranks,
        "gpu": card.name, "measured_ceilings": card.measured, "checkpointing": job.checkpointing,
        "frozen_head": job.frozen_head, "reference": "engine" if job.reference_engine else "cache",
        "offload": job.offload, "workspace": job.workspace_bytes, "peak_mib": memory.total / 2**20,
        "moment": memory.moment, "memory_mib": {name: size / 2**20 for name, size in memory.parts},
        "longest": longest(job, head, card), "ms": 1e3 * time.hidden, "serial_ms": 1e3 * time.serial,
        "time_ms": {name: 1e3 * seconds for name, seconds in time.parts},
    }  # fmt: skip


def _validate(save: Path | None, command: str) -> int:
    print("peak of a step above weights and gradients, MiB: predicted, measured, difference, when", flush=True)
    found = []
    for case in validate.CASES:
        found.append(validate.check(case))
        print(validate.line(found[-1]), flush=True)
        if save:
            append(save, validation_record(found[-1], command))
    wrong = sum(not one.holds for one in found)
    print(f"{len(found) - wrong} of {len(found)} hold to {100 * validate.WITHIN:.0f} %")
    return int(wrong > 0)


def validation_record(one: validate.Checked, command: str) -> dict[str, Any]:
    case = one.case
    return {
        **measure.environment(), "command": command, "bench": validate.BENCH, "provider": case.head,
        "state": "missing" if one.measured is None else "measured", "case": str(case), "D": case.D, "V": case.V,
        "layers": case.layers, "tokens": case.sequences * case.length, "masked": case.masked,
        "dtype": "bf16" if case.bf16 else "fp32", "checkpointing": case.checkpointing,
        "workspace": case.workspace_bytes, "moment": one.moment, "predicted_mib": one.predicted / 2**20,
        "measured_mib": None if one.measured is None else one.measured / 2**20, "ratio": one.ratio,
    }  # fmt: skip


def _devices(ceilings: list[dict[str, Any]]) -> str:
    return ", ".join(sorted({str(one["device"]) for one in ceilings}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--model", default="llama3-8b", help=f"{', '.join(MODELS)}, or a name of the hub's, with -shape"
    )
    parser.add_argument("--gpus", type=int, default=8, help="ranks")
    parser.add_argument("--gpu", default="a100-80g", help=", ".join(CARDS))
    parser.add_argument("--tokens", type=int, default=16384, help="positions of a rank and step, prompts included")
    parser.add_argument("--pairs", type=int, default=1, help="that these are")
    parser.add_argument("--masked", type=float, default=0.5, help="share of the positions that is not scored")
    parser.add_argument("--frozen-head", action="store_true")
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--reference", choices=("cache", "engine"), default="cache")
    parser.add_argument("--offload", action="store_true", help="optimizer states and weights on the host")
    parser.add_argument("--workspace-mb", type=int, default=1024, help="of the fused loss")
    parser.add_argument("--ceilings", type=Path, help="results with records of bench ceilings, in place of peaks")
    parser.add_argument("--tables", action="store_true", help="the report's section of predictions, in Markdown")
    parser.add_argument("--validate", action="store_true", help="compare memory with small measured runs on this CPU")
    parser.add_argument("--save", type=Path, help="append JSON lines to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
