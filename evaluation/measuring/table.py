"""What was measured of each file, its means over prompts with intervals, as a table, a plot and lines of JSON."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation import files
from evaluation.reporting.intervals import Interval, bootstrap

FILES = ("diversity.md", "diversity.png", "diversity_per_prompt.jsonl")


class PromptDiversity(NamedTuple):
    """Of a file's responses to one prompt; None where it was not measured or is not defined."""

    prompt_id: str
    entropy: float | None  # nats a token
    surprisal: float | None  # nats a token
    self_bleu: float | None
    distinct: tuple[float | None, ...]  # of ORDERS


MEASURES: dict[str, Callable[[PromptDiversity], float | None]] = {
    "entropy": lambda p: p.entropy,
    "surprisal": lambda p: p.surprisal,
    "self-BLEU": lambda p: p.self_bleu,
    "distinct-1": lambda p: p.distinct[0],
    "distinct-2": lambda p: p.distinct[1],
    "distinct-3": lambda p: p.distinct[2],
}


class Estimate(NamedTuple):
    """A mean over n prompts."""

    mean: float
    n: int
    interval: Interval | None  # by a bootstrap over prompts; None for a single one


class Row(NamedTuple):
    """A file."""

    label: str
    model: str
    temperature: float | None
    counts: tuple[int, ...]  # responses of each prompt
    words: float  # of a response, mean
    prompts: tuple[PromptDiversity, ...]
    estimates: Mapping[str, Estimate]  # of MEASURES, those that some prompt has


def estimate(prompts: Sequence[PromptDiversity], seed: int) -> dict[str, Estimate]:
    """Of each measure, over the prompts that have one."""
    made = {}
    for name, of in MEASURES.items():
        values = [value for value in map(of, prompts) if value is not None]
        if values:
            interval = bootstrap(values, seed=seed) if len(values) > 1 else None
            made[name] = Estimate(math.fsum(values) / len(values), len(values), interval)
    return made


class Table(NamedTuple):
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        head = ["file", "model", "temperature", "responses", "words", *MEASURES]
        lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
        for row in self.rows:
            temperature = "" if row.temperature is None else f"{row.temperature:g}"
            cells = [row.label, row.model, temperature, _range(row.counts), f"{row.words:.1f}"]
            cells += [_cell(row, measure) for measure in MEASURES]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])


def write(table: Table, folder: Path) -> list[Path]:
    """-> the paths of FILES, the last a line a file and prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in FILES]
    files.write_text(paths[0], f"# Diversity\n\n{table.markdown()}\n\n![plot]({paths[1].name})\n")
    with style.context("default"):
        image = io.BytesIO()
        figure_of(table).savefig(image, format="png", metadata={"Software": None})
    files.write_bytes(paths[1], image.getvalue())
    files.write_rows(
        paths[2],
        (
            {"file": row.label, "model": row.model, "temperature": row.temperature, **prompt._asdict()}
            for row in table.rows
            for prompt in row.prompts
        ),
    )
    return paths


def figure_of(table: Table) -> Figure:
    """A panel a measure: against temperature where files differ in it, a line a model; else a mark a file."""
    shown = [measure for measure in MEASURES if any(measure in row.estimates for row in table.rows)]
    figure = Figure(figsize=(2.6 * len(shown) + 0.6, 3.2), dpi=150, layout="tight")
    grid = figure.subplots(1, len(shown), squeeze=False)
    known = [row.temperature for row in table.rows if row.temperature is not None]
    sweep = len(known) == len(table.rows) and len(set(known)) > 1
    for ax, measure in zip(grid[0], shown, strict=True):
        _sweep(ax, table, measure) if sweep else _marks(ax, table, measure)
        ax.set_title(measure, fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    if sweep and len({row.model for row in table.rows}) > 1:
        grid[0][0].legend(frameon=False, fontsize=7)
    return figure


def _sweep(ax: Axes, table: Table, measure: str) -> None:
    for model in dict.fromkeys(row.model for row in table.rows):
        own = [row for row in table.rows if row.model == model and measure in row.estimates]
        own.sort(key=lambda row: row.temperature or 0.0)
        _bars(ax, [row.temperature or 0.0 for row in own], [row.estimates[measure] for row in own], "o-", model)
    ax.set_xlabel("temperature", fontsize=8)


def _marks(ax: Axes, table: Table, measure: str) -> None:
    points = [(at, row.estimates[measure]) for at, row in enumerate(table.rows) if measure in row.estimates]
    _bars(ax, [at for at, _ in points], [estimate for _, estimate in points], "o", None)
    names = [row.label for row in table.rows]
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
    ax.set_xlim(-0.5, len(names) - 0.5)


def _bars(ax: Axes, xs: Sequence[float], estimates: Sequence[Estimate], style: str, label: str | None) -> None:
    ends = [e.interval or Interval(e.mean, e.mean) for e in estimates]
    below = [max(0.0, e.mean - end.low) for e, end in zip(estimates, ends, strict=True)]
    above = [max(0.0, end.high - e.mean) for e, end in zip(estimates, ends, strict=True)]
    means = [e.mean for e in estimates]
    ax.errorbar(xs, means, yerr=[below, above], fmt=style, markersize=4, linewidth=1, capsize=2, label=label)


def _cell(row: Row, measure: str) -> str:
    """0.412 [0.390, 0.431], with the number of prompts where some have no value."""
    found = row.estimates.get(measure)
    if found is None:
        return "-"
    interval = "" if found.interval is None else f" [{found.interval.low:.3f}, {found.interval.high:.3f}]"
    some = f" ({found.n} prompts)" if found.n < len(row.prompts) else ""
    return f"{found.mean:.3f}{interval}{some}"


def _range(counts: Sequence[int]) -> str:
    """25, or 3 to 25."""
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"
