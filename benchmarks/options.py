"""The flags that the benches of the head share, and where their records go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import DTYPES, ENTROPY, SETTING_KINDS, TOY, Setting, shape_of, usual_dtype
from benchmarks.measure import installed
from benchmarks.measured import Row, refused
from benchmarks.providers import MODES, PROVIDERS
from benchmarks.records import append, append_csv


def parser_of(name: str, doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def add_workload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--masked", type=float, default=0.0, help="share of each sequence that is prompt")
    usual = usual_dtype()
    parser.add_argument("--dtype", choices=DTYPES, default=usual, help=f"default: bf16 if it is fast here, so {usual}")
    parser.add_argument("--kind", choices=SETTING_KINDS, default="trained", help="what the logits look like (cases.py)")
    parser.add_argument("--entropy", type=float, help=f"nats, of the kind trained; default {ENTROPY:g}")
    parser.add_argument("--nll", type=float, help="mean nll of the labels, of the kind trained; default: its own draws")
    parser.add_argument("--seed", type=int, default=0)


def add_run(parser: argparse.ArgumentParser, *, rounds: int | None = 5, warmup: float = 1.0) -> None:
    """rounds None: nothing is timed."""
    parser.add_argument("--mode", choices=MODES, default="step", help="all gradients, a frozen head, or none")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--workspace", type=int, help="bytes, of ours; the library's default if not given")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds)
        parser.add_argument("--warmup", type=float, default=warmup, help="seconds of each provider before the rounds")
    parser.add_argument("--save", type=Path, help="append the records, as JSON lines, to this file")
    parser.add_argument("--csv", type=Path, help="append rows with the columns of Liger's benchmarks, and ours")


def model_name(parser: argparse.ArgumentParser, given: str | None, kind: str, default: str) -> str:
    """The kind lm has a model of its own."""
    name = given or (TOY if kind == "lm" else default)
    try:
        if name != TOY:
            shape_of(name)
    except ValueError as error:
        parser.error(str(error))
    return name


def setting_of(
    parser: argparse.ArgumentParser, args: argparse.Namespace, model: str, tokens: int, pairs: int
) -> Setting:
    try:
        return Setting(
            model=model, tokens=tokens, pairs=pairs, masked=args.masked, dtype=args.dtype, kind=args.kind,
            entropy=args.entropy, nll=args.nll, seed=args.seed,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))


def save(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    for row in rows:
        if args.save:
            append(args.save, row.record)
        if args.csv and row.record.state == "timed":
            append_csv(args.csv, row.record, row.seconds, installed("liger_kernel"))


def finish(rows: Sequence[Row]) -> None:
    """A wrong one of ours is an error, after all the others have been shown and saved."""
    if wrong := refused(rows):
        sys.exit(wrong)
