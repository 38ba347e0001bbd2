"""Time, memory, error against speed and the roofline, as SVG whose bytes depend on the figures alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.cases import DTYPES
from benchmarks.ceilings import COPY, Ceiling
from benchmarks.providers import PROVIDERS
from benchmarks.records import Record
from benchmarks.report.results import Results
from benchmarks.report.shape import AXIS, PRODUCTS_OF, Sweep, is_ours, position, sweeps

MARKS = {"bf16": "o", "fp16": "^", "fp32": "s", "fp64": "D"}
LINES = {"step": "-", "frozen": "--", "forward": ":"}
REDS = ("tab:red", "darkred", "orangered")
OTHERS = [matplotlib.colormaps["tab20"](i) for i in (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19)]
STYLE: Any = {"svg.hashsalt": "performance", "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9}


def draw(results: Results, folder: Path) -> list[Path]:
    """-> the plots that the records are enough for."""
    made = {
        "time": _sweeps(results.of("scaling"), "ms", lambda record: record.ms),
        "memory": _sweeps(results.of("memory"), "peak MiB", lambda record: record.peak_mib),
        "error": _errors(results.of("head")),
        "roofline": _roofline(results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, drawn in made.items():
        if drawn is not None:
            paths.append(folder / f"{results.device}-{name}.svg")
            save(drawn, paths[-1])
    return paths


def save(drawn: Figure, path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        drawn.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(drawn)


def _sweeps(records: Sequence[Record], what: str, value: Callable[[Record], float | None]) -> Figure | None:
    """A panel an axis, a line a provider and mode."""
    found = [sweep for sweep in sweeps(records) if sweep.timed]
    axes = [axis for axis in AXIS if any(sweep.axis == axis for sweep in found)]
    if not axes:
        return None
    with matplotlib.rc_context(STYLE):
        drawn, grid = plt.subplots(1, len(axes), figsize=(4.2 * len(axes), 3.4), squeeze=False)
        for ax, axis in zip(grid[0], axes, strict=True):
            for sweep in found:
                if sweep.axis == axis:
                    _lines(ax, sweep, value)
            _logarithmic(ax, AXIS[axis], what)
        grid[0][0].legend(fontsize=6)
    return drawn


def _lines(ax: Axes, sweep: Sweep, value: Callable[[Record], float | None]) -> None:
    for name in sweep.providers:
        points = [(position(record), y) for record in sweep.of(name) if (y := value(record)) is not None]
        if points:
            style: Any = {"linestyle": LINES[sweep.mode], "marker": MARKS[sweep.dtype], "markersize": 3}
            style |= {"color": _colour(name), "linewidth": 1.8 if is_ours(name) else 1.0}
            ax.plot(*zip(*points, strict=True), label=f"{name}, {sweep.mode}, {sweep.dtype}", **style)


def _errors(records: Sequence[Record]) -> Figure | None:
    """Every step: its error of dh over its time as a multiple of the library's products."""
    points = [r for r in records if r.state == "timed" and r.mode == "step" and not r.masked and r.error and r.ratio]
    if not points:
        return None
    with matplotlib.rc_context(STYLE):
        drawn, ax = plt.subplots(figsize=(5.6, 4.2))
        for record in points:
            label = f"{record.provider}, {record.dtype}"
            mark, size = MARKS[str(record.dtype)], 8 if is_ours(record.provider) else 5
            assert record.error is not None and record.ratio is not None, "asked for above"
            ax.plot(record.ratio, record.error[1], mark, color=_colour(record.provider), markersize=size, label=label)
        _logarithmic(ax, "time by the library's three products", "relative error of dh")
        _legend_once(ax)
    return drawn


def _roofline(results: Results) -> Figure | None:
    """Useful operations by the least bytes that have to move, against useful operations a second."""
    copy = next((row for row in results.ceilings if row.what == COPY), None)
    peaks = {dtype: _fastest(results.ceilings, dtype) for dtype in MARKS}
    points = [r for r in [*results.of("head"), *results.of("scaling")] if r.state == "timed" and r.tflops]
    if copy is None or copy.gb_per_s is None or not points:
        return None
    with matplotlib.rc_context(STYLE):
        drawn, ax = plt.subplots(figsize=(5.6, 4.2))
        intensities = [intensity(record) for record in points]
        for dtype, peak in peaks.items():
            if peak is not None:
                ridge = 1e3 * peak / copy.gb_per_s  # operations a byte from which on products are the roof
                x = [min(ridge, *intensities) / 4, ridge, 2 * max(ridge, *intensities)]
                y = [min(peak, 1e-3 * copy.gb_per_s * at) for at in x]
                ax.plot(
                    x, y, color="black", linestyle="-" if dtype == "fp32" else "--", linewidth=1, label=f"roof, {dtype}"
                )
        for record, at in zip(points, intensities, strict=True):
            mark, label = MARKS[str(record.dtype)], f"{record.provider}, {record.dtype}"
            assert record.tflops is not None, "asked for above"
            ax.plot(at, record.tflops, mark, color=_colour(record.provider), markersize=4, label=label)
        _logarithmic(ax, "useful operations a byte (inputs and gradients once)", "useful TF/s")
        _legend_once(ax)
    return drawn


def _fastest(rows: Sequence[Ceiling], dtype: str) -> float | None:
    """TF/s, of the head's three products."""
    return max((row.tflops for row in rows if row.dtype == dtype and row.tflops), default=None)


def intensity(record: Record) -> float:
    """Operations of the products that the mode needs, by the bytes of h and w and of the gradients it makes."""
    assert record.scored and record.D and record.V and record.mode and record.dtype, "a head that was timed"
    products = PRODUCTS_OF[record.mode]
    hidden, weight = record.scored * record.D, record.V * record.D
    moved = hidden + weight + (hidden if products > 1 else 0) + (weight if products > 2 else 0)
    return 2 * products * record.scored * weight / (moved * DTYPES[record.dtype].itemsize)


def _colour(provider: str) -> Any:
    """The same in every plot; ours are red."""
    peers, ours = ([name for name in PROVIDERS if PROVIDERS[name].ours is own] for own in (False, True))
    if provider in ours:
        return REDS[ours.index(provider) % len(REDS)]
    return OTHERS[peers.index(provider) % len(OTHERS)] if provider in peers else "grey"


def _logarithmic(ax: Axes, x: str, y: str) -> None:
    """Every tick a plain number, and a decade at least, so that what is flat looks flat."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high < 10 * low:
        middle = (low * high) ** 0.5
        ax.set_ylim(middle / 10**0.5, middle * 10**0.5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=_subdivisions(axis.get_view_interval())))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(True, which="major", linewidth=0.3)


def _subdivisions(interval: Sequence[float]) -> tuple[float, ...]:
    """Of a decade: fewer where there are many decades."""
    return (1.0, 2.0, 5.0) if interval[1] < 1000 * interval[0] else (1.0,)


def _legend_once(ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    ax.legend(list(once.values()), list(once), fontsize=6)
