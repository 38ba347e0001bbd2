"""The README's one table: the newest results of a CPU and, where there are any, of a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.records import Record
from benchmarks.report.notes import named
from benchmarks.report.numbers import errors, figure, times
from benchmarks.report.page import device
from benchmarks.report.results import Results
from benchmarks.report.shape import COMPILED, LIGER, NAIVE, TRL, cases, is_ours, largest, timed
from benchmarks.report.tables import title
from tools.marked import table

MARKER = "performance, in short"
SHOWN = (NAIVE, COMPILED, TRL, LIGER)  # beside ours
DTYPES = ("bf16", "fp32")
HEADINGS = ("device, workload", "provider", "ms", "x products", "peak MiB", "error of loss, dh, dw")
NOTHING_YET = "No results yet: `make bench` measures this machine."


def text(all_results: Sequence[Results]) -> str:
    chosen = _chosen(all_results)
    rows = [row for results in chosen for dtype in DTYPES for row in _rows(results, dtype)]
    if not rows:
        return NOTHING_YET
    said = "; ".join(f"{device(results)}, {results.date}" for results in chosen)
    return (
        f"Loss and all gradients of DPO ({said}); by `python -m benchmarks.report` from `benchmarks/results/`, where "
        f"every row has its command.\n\n{table(HEADINGS, rows)}"
    )


def _chosen(all_results: Sequence[Results]) -> list[Results]:
    """The last measured of each sort."""
    cpus = [results for results in all_results if results.environment["simd"] is not None]
    gpus = [results for results in all_results if results.environment["simd"] is None]
    return [max(sort, key=lambda results: (results.date, results.device)) for sort in (cpus, gpus) if sort]


def _rows(results: Results, dtype: str) -> list[tuple[object, ...]]:
    found = cases(results.of("head"))
    case = largest(found, dtype)
    if case is None:
        return []
    own = [record for record in timed(found[case], mode="step") if _is_shown(record)]
    where = f"{results.environment['device']}: {title(case)}"
    return [
        (where, named(record.provider), figure(record.ms), times(record.ratio), figure(record.peak_mib),
         errors(record.error))
        for record in own
    ]  # fmt: skip


def _is_shown(record: Record) -> bool:
    return record.provider in SHOWN or is_ours(record.provider)
