"""A kernel's winner: gates, check, clock; then once more around the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton

from benchmarks import measure
from expo_kernels.kernels.triton.tuning.types import Card
from tools.tuning import candidates, checks, gates, subjects
from tools.tuning.candidates import Candidate, named, with_candidate

MARGIN = 0.02  # by which what stands in the table must be beaten
ROUNDS = 7


class Tried(NamedTuple):
    """A candidate, and what came of it: its time, or why it has none."""

    kernel: str
    candidate: Candidate
    reason: str
    steps: dict[str, measure.Timing]

    @property
    def seconds(self) -> float:
        return sum(time.median for time in self.steps.values())


class Winner(NamedTuple):
    candidate: Candidate
    tried: list[Tried]


def search(card: Card, kernel: str, device: torch.device, *, warmup: float, rounds: int = ROUNDS) -> Winner | None:
    """None where the card has no such kernel."""
    shapes = candidates.shapes(card, kernel)
    if not shapes:
        return None
    tried = try_all(card, kernel, shapes, device, warmup=warmup, rounds=rounds)
    best = fastest(tried, shapes[0])
    orders = candidates.orders(best, kernel)
    if len(orders) > 1:
        # the best of the first turn is timed again: only times of one turn are compared
        more = try_all(card, kernel, orders, device, warmup=warmup, rounds=rounds)
        best, tried = fastest(more, best), [*tried, *more]
    if best != shapes[0] and device.type != "cpu":
        (wrong,) = gates.broken([with_candidate(card, kernel, best)], kernel, every=True)
        if wrong:
            tried.append(Tried(kernel, best, f"fastest, but {wrong}", {}))
            best = shapes[0]
    return Winner(best, tried)


def try_all(
    card: Card, kernel: str, all_of: Sequence[Candidate], device: torch.device, *, warmup: float, rounds: int
) -> list[Tried]:
    """Those that are as they must be, timed in turn; and the others, with what is wrong."""
    rows = [with_candidate(card, kernel, candidate) for candidate in all_of]
    # the interpreter's programs are not compiled
    reasons = [""] * len(rows) if device.type == "cpu" else gates.broken(rows, kernel, every=False)
    made, on = subjects.inputs(subjects.size_of(kernel, device), kernel, device), checks.checked(kernel, device)
    steps: dict[tuple[int, str], subjects.Step] = {}
    for i, row in enumerate(rows):
        reasons[i] = reasons[i] or _runs_wrong(kernel, row, on)
        if not reasons[i]:
            steps |= {(i, name): step for name, step in subjects.steps(kernel, made, row).items()}
    keys = {f"{i} {name}": (i, name) for i, name in steps}
    times = measure.interleaved({key: steps[of] for key, of in keys.items()}, rounds=rounds, warmup=warmup)
    found: list[dict[str, measure.Timing]] = [{} for _ in rows]
    for key, (i, name) in keys.items():
        found[i][name] = times[key]
    return [Tried(kernel, *each) for each in zip(all_of, reasons, found, strict=True)]


def _runs_wrong(kernel: str, row: Card, on: checks.Checked) -> str:
    try:
        return checks.wrong(kernel, row, on)
    except (RuntimeError, triton.TritonError) as error:  # what the card refuses: the candidate is out, and says why
        return f"does not run: {type(error).__name__}: {' '.join(str(error).split())[:120]}"


def fastest(tried: Sequence[Tried], shipped: Candidate) -> Candidate:
    """What stands in the table, unless it is wrong or beaten by more than the margin."""
    timed = {one.candidate: one.seconds for one in tried if not one.reason}
    if not timed:
        raise RuntimeError(f"no candidate of {tried[0].kernel} is right: {tried[0].reason}")
    best = min(timed, key=lambda candidate: timed[candidate])
    return shipped if shipped in timed and timed[best] > (1 - MARGIN) * timed[shipped] else best


def lines(winner: Winner) -> list[str]:
    """A table, fastest first, then what was not timed."""
    shown = []
    for one in sorted(winner.tried, key=lambda one: (bool(one.reason), one.seconds)):
        chosen = "  <- taken" if one.candidate == winner.candidate and not one.reason else ""
        parts = one.reason or ", ".join(f"{name} {1e3 * time.median:.3f}" for name, time in one.steps.items()) + " ms"
        shown.append(f"{one.kernel:<11} {named(one.candidate):<52} {parts}{chosen}")
    return shown
