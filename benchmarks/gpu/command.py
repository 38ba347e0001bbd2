"""What check, tune and step have in common: their flags, the GPU that they want, and what is kept of a run."""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import parts
from benchmarks.gpu import results
from benchmarks.parts import Outcome, Part, shown
from benchmarks.report.results import FOLDER

Build = Callable[[Path, dict[str, Any]], list[Part]]  # a folder for what the parts write, the environment -> the parts


def main(name: str, doc: str | None, build: Build, budget: float, arguments: list[str] | None = None) -> int:
    """-> the exit code: 0 where nothing failed, was cut off or was not reached; 2 without a GPU."""
    args = parse(name, doc, budget, arguments)
    if not args.list and not torch.cuda.is_available():
        print(
            f"benchmarks.gpu.{name}: no GPU here (torch {torch.__version__} of {sys.executable} sees none), so nothing "
            "was run; --list shows what would be"
        )
        return 2
    folder = args.logs or (Path("LOGS") if args.list else Path(tempfile.mkdtemp(prefix=f"gpu-{name}-")))
    facts = parts.environment()
    chosen = [part for part in build(folder, facts) if _asked_for(part, args)]
    if args.list or not chosen:
        print("\n".join(_listed(part) for part in chosen) or f"no part of {name} has the items or words asked for")
        return 0 if chosen else 2
    print(f"{facts['device']}, driver {facts['driver']}, torch {facts['torch']}, triton {facts['triton']}; {folder}\n")

    def keep(outcomes: Sequence[Outcome]) -> list[Path]:
        try:
            return results.keep(name, outcomes, facts, args.results)
        except Exception:  # the other parts go on; the last call decides the exit code
            traceback.print_exc()
            return []

    outcomes = parts.run(chosen, budget=args.budget, logs=folder, after=keep)
    print(parts.summary(outcomes))
    written = keep(outcomes)
    print("\n".join(f"written: {path}" for path in written) or f"nothing could be written to {args.results}")
    return 1 if not written or any(outcome.broken for outcome in outcomes) else 0


def _asked_for(part: Part, args: argparse.Namespace) -> bool:
    return (not args.items or part.item in args.items) and all(word in part.name for word in args.only)


def _listed(part: Part) -> str:
    what = f"missing: {part.missing}" if part.missing else shown(part.command)
    return f"{part.item}  {part.name}, at most {part.seconds:.0f} s: {what}"


def parse(name: str, doc: str | None, budget: float, arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.gpu.{name}", description=doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--items", type=int, nargs="+", default=[], help="of the list; default: all of this command's")
    parser.add_argument("--only", nargs="+", default=[], help="parts that have all of these words in their names")
    parser.add_argument("--budget", type=float, default=budget, help=f"seconds of all parts; default {budget:.0f}")
    parser.add_argument("--logs", type=Path, help="folder for what the parts print and write; default: a new one")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder; default benchmarks/results")
    parser.add_argument("--list", action="store_true", help="show the parts and their commands, and run none")
    args = parser.parse_args(arguments)
    if args.budget <= 0:
        parser.error(f"--budget must be above 0, got {args.budget}")
    if args.logs and args.logs.exists() and any(args.logs.iterdir()):
        parser.error(f"--logs: want a new or an empty folder, or old results would count as new; got {args.logs}")
    return args
