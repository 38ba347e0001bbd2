"""python -m tools.tuning: times tiles on this card and, with --write, puts the fastest into the library's table.

Without a card it runs in Triton's interpreter (TRITON_INTERPRET=1), on tiny sizes, writes nothing, and its times mean
nothing: it shows that all of it runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks import measure
from benchmarks.records import append
from expo_kernels.kernels.triton import tuning
from expo_kernels.kernels.triton.tuning.types import Card
from tools.tuning import candidates, route, search, table

ROUTE, PRODUCTS = "route", "products"  # after the kernels


def main(arguments: list[str] | None = None) -> int:
    args = _options(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = _card(device, write=args.write)
    warmup = 0.0 if device.type == "cpu" else args.warmup
    for kernel in args.kernels:
        print(f"{kernel} on {card.name}; {measure.environment()}", flush=True)
        chosen = _route if kernel in (ROUTE, PRODUCTS) else _kernel
        card = chosen(card, kernel, device, args, warmup)
        if args.write:
            table.write(card)
    print(f"{'written to' if args.write else 'not written to'} {table.FILE.relative_to(measure.ROOT)}")
    return 0


def _kernel(card: Card, kernel: str, device: torch.device, args: argparse.Namespace, warmup: float) -> Card:
    winner = search.search(card, kernel, device, warmup=warmup, rounds=args.rounds)
    if winner is None:
        print(f"{kernel}: {card.name} has no such kernel")
        return card
    print("\n".join(search.lines(winner)), flush=True)
    for one in winner.tried if args.save else ():
        times = {f"{name}_ms": 1e3 * time.median for name, time in one.steps.items()}
        taken = one.candidate == winner.candidate and not one.reason
        _save(args, kernel, candidates.named(one.candidate), one.reason, times, taken)
    time = next((one.seconds for one in reversed(winner.tried) if one.candidate == winner.candidate and one.steps), 0.0)
    row = candidates.with_candidate(card, kernel, winner.candidate)
    return _measured(row, kernel, f"{candidates.named(winner.candidate)} in {1e3 * time:.2f} ms")


def _route(card: Card, what: str, device: torch.device, args: argparse.Namespace, warmup: float) -> Card:
    if what == ROUTE:
        names, found = list(route.routes(card)), route.choose(card, device, warmup=warmup, rounds=args.rounds)
        row = found.card
        taken = "library" if not row.fused else "fused" if row.persistent is None else "descriptors"
    else:
        names, found = ["library", "ours"], route.choose_products(card, device, warmup=warmup, rounds=args.rounds)
        taken = "ours" if found.card.own_products else "library"
    print("\n".join(route.lines(found, names)), flush=True)
    for name in names if args.save else ():
        times = {f"{head}_ms": 1e3 * s for (head, of), s in found.seconds.items() if of == name}
        _save(args, what, name, found.refused.get(name, ""), times, name == taken)
    return _measured(found.card, what, taken)


def _measured(row: Card, what: str, words: str) -> Card:
    """The row, saying what was timed where; what was said of the same before is gone."""
    facts = measure.environment()
    line = f"{what}: {words}; {facts['device']}, torch {facts['torch']}, triton {triton.__version__}, {facts['date']}"
    others = [known for known in row.measured if not known.startswith(f"{what}:")]
    order = [*candidates.KERNELS, PRODUCTS, ROUTE]
    return row._replace(measured=tuple(sorted([*others, line], key=lambda known: order.index(known.split(":")[0]))))


def _save(
    args: argparse.Namespace, kernel: str, candidate: str, reason: str, times: dict[str, float], taken: bool
) -> None:
    facts: dict[str, Any] = dict(measure.environment())
    row = {"bench": "tuning", "kernel": kernel, "candidate": candidate, "reason": reason, "taken": taken, "ms": times}
    append(args.save, {**facts, **row})


def _card(device: torch.device, *, write: bool) -> Card:
    """The row of this card, and of no other: a row is not written on a card that merely uses it."""
    card = tuning.card_for(device)
    if not write:
        return card
    if device.type == "cpu":
        raise SystemExit("tools.tuning --write: want a GPU, got none: an interpreter's times mean nothing")
    if torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        own = f"sm_{major}{minor}"
    else:
        own = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    if own != card.name:
        raise SystemExit(f"tools.tuning --write: want a card of {', '.join(tuning.CARDS)}, got {own}")
    return card


def _options(arguments: list[str] | None) -> argparse.Namespace:
    every = [*candidates.KERNELS, PRODUCTS, ROUTE]
    parser = argparse.ArgumentParser(
        prog="python -m tools.tuning", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--kernels", nargs="+", choices=every, default=every, help="in this order; the routes come last"
    )
    parser.add_argument("--write", action="store_true", help="put the winners into the table")
    parser.add_argument("--rounds", type=int, default=search.ROUNDS)
    parser.add_argument("--warmup", type=float, default=0.02, help="seconds of each candidate")
    parser.add_argument("--save", type=Path, help="append every candidate to this file, a line of JSON each")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
