"""What is predicted for 8B and 70B models on 8 to 512 GPUs, in lines of Markdown: a section of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.plan.cards import CARDS, USABLE, Card, with_ceilings
from benchmarks.plan.heads import HEADS
from benchmarks.plan.job import Job
from benchmarks.plan.longest import fits, longest
from benchmarks.plan.peak import BACKWARD, peak
from benchmarks.plan.seconds import step
from benchmarks.plan.validate import BENCH

LENGTH = 8192  # of each response, with its prompt
_8B, _70B = (
    [Job(model=model, ranks=ranks, pairs=1, length=LENGTH) for ranks in (8, 64, 512)]
    for model in ("llama3-8b", "llama3-70b")
)
JOBS = (*_8B, *_70B, Job(model="llama3-70b", ranks=8, pairs=1, length=LENGTH, offload=True))
STATES = ("weights", "gradients", "optimizer states")
GIB = float(2**30)
Row = Sequence[str]


def tables(records: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """records: of results; those of ceilings replace published peaks of their card, those of --validate are summed up.

    The same records give the same lines.
    """
    cards = [with_ceilings(card, [one for one in records if one["bench"] == "ceilings"]) for card in CARDS.values()]
    names = " / ".join(HEADS)
    return [
        *_introduction(cards, [one for one in records if one["bench"] == BENCH]), "",
        f"Longest pair that fits {100 * USABLE:.0f} % of a card, tokens of each response with its prompt, {names}:", "",
        *markdown(_longest_rows(cards)), "",
        f"Memory by part, GiB, one pair of 2 x {LENGTH:,}; the peak is all that stands, and the larger of activations "
        "with a head and the body's backward:", "",
        *markdown(_memory_by_part()), "",
        f"A step, ms, one pair of 2 x {LENGTH:,}, {names}; as much communication hidden as can be, - where it does not "
        "fit:", "",
        *markdown(_grid([[card] for card in cards], _time)), "",
        f"Where the time goes, ms, {_title(JOBS[0])}:", "",
        *markdown(_time_by_part(JOBS[0], cards)),
    ]  # fmt: skip


def _introduction(cards: Sequence[Card], checked: Sequence[Mapping[str, Any]]) -> list[str]:
    job, own = JOBS[0], ", ".join(card.name for card in cards if card.measured)
    rest = ", ".join(card.name for card in cards if not card.measured)
    ratios = [one["ratio"] for one in checked if one["ratio"] is not None]
    found = f" ({len(ratios)} steps, {_percent(min(ratios))} to {_percent(max(ratios))})" if ratios else ""
    return [
        "**Predicted, not measured:** `python -m benchmarks.plan --tables`. One pair a rank, "
        f"{100 * job.masked:.0f} % of its positions prompt, bf16, ZeRO-3, Adam, checkpointing, flash attention, cached "
        f"reference, workspace {job.workspace_bytes >> 20} MiB; the host's memory is not looked at. The body is the "
        "model of transformers traced on fake tensors, ZeRO's shares are those of `train/memory.py`. Memory is within "
        "10 % of what small models allocate in whole steps on a CPU with each head: `python -m benchmarks.plan "
        f"--validate`{found}. Time is not validated.",
        *([f"Products and copies were measured on {own}."] if own else []),
        *([f"Published peaks and assumed shares of them (`benchmarks/plan/cards.py`): {rest}."] if rest else []),
    ]


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def markdown(rows: Iterable[Row]) -> list[str]:
    head, *body = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def columns(rows: Iterable[Row]) -> list[str]:
    """For a terminal: the first column to the left, the others to the right."""
    every = list(rows)
    first, *others = (max(map(len, column)) for column in zip(*every, strict=True))
    return ["  ".join((row[0].ljust(first), *map(str.rjust, row[1:], others))).rstrip() for row in every]


def memory_rows(job: Job) -> list[Row]:
    """A row a part in GiB, a column a head."""
    found = [peak(job, head) for head in HEADS]
    parts = [dict(one.parts) for one in found]
    return [
        ["", *HEADS],
        *([name, *(f"{part[name] / GIB:.2f}" for part in parts)] for name in parts[0] if any(p[name] for p in parts)),
        ["peak", *(f"{one.total / GIB:.2f}" for one in found)],
        ["when", *(one.moment for one in found)],
    ]


def time_rows(job: Job, card: Card) -> list[Row]:
    """A row a part in ms, a column a head."""
    steps = [step(job, head, card) for head in HEADS]
    parts = [dict(one.parts) for one in steps]
    return [
        ["", *HEADS],
        *([name, *(_ms(part[name]) for part in parts)] for name in parts[0] if any(part[name] for part in parts)),
        ["step, communication hidden", *(_ms(one.hidden) for one in steps)],
        ["step, nothing overlaps", *(_ms(one.serial) for one in steps)],
    ]


def _memory_by_part() -> list[Row]:
    """A row a job."""
    rows: list[Row] = [["", ", ".join(STATES), "a layer, buffers", "activations", BACKWARD, *HEADS, "peak"]]
    for job in JOBS:
        found = [peak(job, head) for head in HEADS]
        states = sum(size for name, size in found[0].standing if name in STATES)
        others = sum(size for _, size in found[0].standing) - states
        shared = (states, others, found[0].activations, dict(found[0].moments)[BACKWARD])
        peaks = " / ".join(f"{one.total / GIB:.1f}" for one in found)
        rows.append([_title(job), *(f"{size / GIB:.1f}" for size in (*shared, *(one.head for one in found))), peaks])
    return rows


def _time_by_part(job: Job, cards: Sequence[Card]) -> list[Row]:
    """A column a card; all but the head is the same under every head."""
    made = [{head: step(job, head, card) for head in HEADS} for card in cards]
    bodies = [dict(steps["ours"].parts) for steps in made]
    shared = [name for name in bodies[0] if not name.startswith("head") and any(body[name] for body in bodies)]
    return [
        ["", *(card.name for card in cards)],
        *([name, *(_ms(body[name]) for body in bodies)] for name in shared),
        *([f"head, {head}", *(_ms(steps[head].head) for steps in made)] for head in HEADS),
    ]


def _longest_rows(cards: Sequence[Card]) -> list[Row]:
    """A column for all cards of one size."""
    sizes = {card.memory_gib: [other for other in cards if other.memory_gib == card.memory_gib] for card in cards}
    return _grid(list(sizes.values()), lambda job, head, card: f"{longest(job, head, card):,}")


def _grid(cards: Sequence[Sequence[Card]], cell: Callable[[Job, str, Card], str]) -> list[Row]:
    """A row a job, a column for cards that are alike, in each cell the heads; - where none of them fits."""
    rows: list[Row] = [["", *(", ".join(card.name for card in alike) for alike in cards)]]
    for job in JOBS:
        cells = [[cell(job, head, alike[0]) for head in HEADS] for alike in cards]
        rows.append([_title(job), *(" / ".join(one) if set(one) - {"0", "-"} else "-" for one in cells)])
    return rows


def _time(job: Job, head: str, card: Card) -> str:
    return _ms(step(job, head, card).hidden) if fits(job, head, card) else "-"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}"


def _title(job: Job) -> str:
    return f"{job.model} on {job.ranks}{', offloaded' if job.offload else ''}"
