"""The tables of bench_step and bench_packing, and of what the machine reaches at best."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.ceilings import Ceiling
from benchmarks.records import Record
from benchmarks.report.notes import commands, refused
from benchmarks.report.numbers import NOTHING, between, count, figure, times
from benchmarks.report.results import Step
from tools.marked import table

WAYS = ("padded", "packed", "shared")  # of bench_packing, whose libraries a reader of results need not have
HEADINGS = ("provider", "tokens a second", "quartiles", "x compiled", "x TRL", "extra peak MiB", "standing MiB")


def steps(rows: Sequence[Step]) -> list[str]:
    """A table a body and vocabulary."""
    found: dict[tuple[object, ...], list[Step]] = {}
    for row in rows:
        found.setdefault((row.model, row.vocabulary, row.dtype, row.pairs, row.longest), []).append(row)
    lines: list[str] = []
    for own in found.values():
        first = own[0]
        lines += [
            f"#### {first.model}, V {count(first.vocabulary)}, {first.dtype}", "",
            f"{first.pairs} pairs a step of up to {first.longest} tokens, {first.rounds} rounds. Multiples of a "
            "rival's speed are medians over the same rounds, above 1 is faster; extra peak is above what stands.", "",
            table(HEADINGS, [_cells(row) for row in own if row.state == "timed"]), "",
            *refused(own), *commands(own),
        ]  # fmt: skip
    return lines


def _cells(row: Step) -> tuple[object, ...]:
    name = "**ours**" if row.provider == "ours" else row.provider
    return (
        name, figure(row.tokens_per_second), between(row.low, row.high), times(row.ratio_compiled),
        times(row.ratio_trl), figure(row.extra_peak_mib), figure(row.standing_mib),
    )  # fmt: skip


def packing(records: Sequence[Record]) -> list[str]:
    """Tokens that a body reads, then times, both by the padded batch's."""
    lines: list[str] = []
    for state, heading in (("counted", "tokens read, by the padded"), ("timed", "ms, and by the padded")):
        own = [record for record in records if record.state == state]
        kinds = list(dict.fromkeys(_workload(record) for record in own))
        found = {(_workload(record), record.provider): record for record in own}
        rows = [(kind, *(_share(found[kind, way]) for way in WAYS)) for kind in kinds]
        lines += [table((heading, *WAYS), rows), ""] if rows else []
    return [*lines, *commands(records)] if lines else []


def _workload(record: Record) -> str:
    """A way of packing stands before it where times are."""
    return str(record.kind).rpartition(", ")[2]


def _share(record: Record) -> str:
    return times(record.ratio) if record.ms is None else f"{figure(record.ms)}, {times(record.ratio)}"


def ceilings(rows: Sequence[Ceiling]) -> list[str]:
    if not rows:
        return []
    cells = [
        (row.what, row.dtype or NOTHING, count(row.tokens), count(row.D), count(row.V), figure(row.ms),
         figure(row.tflops), figure(row.gb_per_s))
        for row in rows
    ]  # fmt: skip
    headings = ("what", "dtype", "N", "D", "V", "ms", "TF/s", "GB/s, read and written")
    return [table(headings, cells), "", *commands(rows)]
