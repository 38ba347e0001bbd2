"""The tables of the loss head: Markdown lines from records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.records import MODES, Record
from benchmarks.report.notes import Refusal, about, commands, everywhere, named, once, quoted, refused
from benchmarks.report.numbers import NOTHING, between, count, errors, figure, times
from benchmarks.report.shape import (
    AXIS,
    COMPILED,
    NAIVE,
    PRODUCTS_OF,
    Case,
    Sweep,
    cases,
    position,
    sweeps,
    the,
)  # fmt: skip
from tools.marked import table

HEAD = ("mode", "provider", "ms", "quartiles", "x products", "x compiled", "TF/s", "peak MiB", "error of loss, dh, dw")


def head(records: Sequence[Record]) -> list[str]:
    """A table a workload, all modes."""
    found = cases(records)
    known = everywhere(list(found.values()))
    lines = once(known)
    for case, own in found.items():
        unmasked = found.get(case.without_mask(), []) if case.masked else None
        lines += [f"#### {title(case)}", "", _facts(own), "", *_head_table(own, unmasked)]
        lines += [*refused(own, known), *commands(own)]
    return [*lines, *about(records)]


def title(case: Case) -> str:
    masked = f", {100 * case.masked:.0f} % masked" if case.masked else ""
    more = f", soft cap {case.softcap:g}" if case.softcap is not None else ""
    more += f", workspace {case.workspace / 2**20:g} MiB" if case.workspace is not None else ""
    return f"{case.dtype}, {count(case.tokens)} tokens{masked}, D {count(case.D)}, V {count(case.V)}{more}"


def _facts(own: Sequence[Record]) -> str:
    """What the workload looks like, by measurement."""
    first = next((record for record in own if record.scored is not None), own[0])
    rounds = sorted({record.rounds for record in own if record.rounds is not None})
    return (
        f"{count(first.scored)} scored tokens in {first.pairs} pairs, {first.model}, {first.kind}: entropy "
        f"{figure(first.entropy)} nats, mean nll {figure(first.nll)} nats; medians of "
        f"{' or '.join(map(str, rounds)) or 'no'} rounds."
    )


def _head_table(own: Sequence[Record], unmasked: Sequence[Record] | None) -> list[str]:
    """unmasked: the same workload with all tokens scored, to set the times beside."""
    headings = HEAD if unmasked is None else (*HEAD, "x unmasked")
    rows: list[tuple[object, ...]] = []
    for mode in MODES:
        timed = [record for record in own if record.mode == mode and record.state == "timed"]
        base = the(own, COMPILED, mode)
        rows += [_products_row(mode, timed, len(headings))] if timed else []
        for record in timed:
            cells = _head_cells(record, base)
            if unmasked is not None:
                cells += (times(_over(record, the(unmasked, record.provider, mode))),)
            rows.append(cells)
    return [table(headings, rows), ""] if rows else []


def _products_row(mode: str, timed: Sequence[Record], width: int) -> tuple[object, ...]:
    cells = (mode, f"the library's {PRODUCTS_OF[mode]} products", figure(timed[0].products_ms), NOTHING, times(1.0))
    return (*cells, *(NOTHING for _ in range(width - len(cells))))


def _head_cells(record: Record, base: Record | None) -> tuple[object, ...]:
    return (
        record.mode, named(record.provider), figure(record.ms), between(record.low_ms, record.high_ms),
        times(record.ratio), times(_over(record, base)), figure(record.tflops), figure(record.peak_mib),
        errors(record.error),
    )  # fmt: skip


def _over(record: Record, base: Record | None) -> float | None:
    return None if base is None or not record.ms or not base.ms else record.ms / base.ms


# sweeps


def scaling(records: Sequence[Record]) -> list[str]:
    return _sweeps(records, "ms", _ms)


def memory(records: Sequence[Record]) -> list[str]:
    return _sweeps(records, "peak MiB", _peak)


def _ms(record: Record) -> float | None:
    return record.ms


def _peak(record: Record) -> float | None:
    return record.peak_mib


def _sweeps(records: Sequence[Record], what: str, value: Callable[[Record], float | None]) -> list[str]:
    found = sweeps(records)
    known = everywhere([sweep.records for sweep in found])
    return [*once(known), *(line for sweep in found for line in _sweep(sweep, what, value, known))]


def _sweep(sweep: Sweep, what: str, value: Callable[[Record], float | None], known: Sequence[Refusal]) -> list[str]:
    """A line a place on the axis, a column a provider, and the slopes below."""
    axis, providers = AXIS[sweep.axis], [name for name in sweep.providers if sweep.of(name)]
    cells = {name: {position(record): figure(value(record)) for record in sweep.of(name)} for name in providers}
    places = sorted({place for own in cells.values() for place in own})
    rows = [(count(place), *(cells[name].get(place, NOTHING) for name in providers)) for place in places]
    slopes = (times(next((r.slope for r in sweep.of(name) if r.slope is not None), None)) for name in providers)
    headings = (axis, *(named(name) for name in providers))
    return [
        f"#### {what} against {axis}: {sweep.mode}, {sweep.dtype}", "", _fixed(sweep), "",
        table(headings, [*rows, ("slope", *slopes)]), "", *refused(sweep.records, known), *commands(sweep.records),
    ]  # fmt: skip


def _fixed(sweep: Sweep) -> str:
    """What does not vary; the slope is that of the logarithms."""
    varies = {"tokens": ("tokens",), "vocabulary": ("V",), "length": ("pairs",)}[sweep.axis]
    parts = []
    for name in ("tokens", "D", "V", "pairs"):
        values = {getattr(record, name) for record in sweep.records}
        if len(values) == 1 and name not in varies:
            parts.append(f"{name} {count(values.pop())}")
    return f"{', '.join(parts)}. Slope: of the logarithms, 1 where a cost grows as {AXIS[sweep.axis]} does."


# errors


def speed_and_error(records: Sequence[Record]) -> list[str]:
    """The steps of every workload without a mask, from the fastest on."""
    rows = []
    for case, own in cases(records).items():
        naive = the(own, NAIVE, "step")
        if case.masked or naive is None or not naive.error:
            continue
        timed = [r for r in own if r.mode == "step" and r.state == "timed" and r.error and r.ratio is not None]
        for record in sorted(timed, key=lambda r: r.ratio or 0.0):
            over = [own / plain for own, plain in zip(record.error or (), naive.error, strict=True)]
            workload = f"{case.dtype}, {count(case.tokens)} x {count(case.D)} x {count(case.V)}"
            beside = ", ".join(times(share) for share in over)
            rows.append((workload, named(record.provider), times(record.ratio), errors(record.error), beside))
    headings = ("workload, N x D x V", "provider", "x products", "error of loss, dh, dw", "x naive's")
    return [table(headings, rows), ""] if rows else []


def accuracy(records: Sequence[Record]) -> list[str]:
    """Errors of nll, dh, dw, db, a line for dtype and kind of logits."""
    if not records:
        return []
    rows = [
        (r.dtype, r.kind, named(r.provider), errors(r.error), quoted(r.reason) if r.reason else NOTHING)
        for r in records
    ]
    first = records[0]
    headings = ("dtype", "logits", "provider", "error of nll, dh, dw, db", "not measured because")
    size = f"N {count(first.tokens)}, D {count(first.D)}, V {count(first.V)}; relative in norm, against float64."
    return [size, "", table(headings, rows), "", *commands(records)]


def products(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    rows = [(r.provider, r.dtype, figure(r.ms), times(r.ratio), figure(r.tflops)) for r in records]
    return [table(("product", "dtype", "ms", "x the whole", "TF/s"), rows), "", *commands(records)]
