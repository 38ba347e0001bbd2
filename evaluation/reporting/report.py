"""Models against one baseline: a Markdown page, its numbers as JSON, a figure, and a line a prompt."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation import files
from evaluation.judging.verdicts import REPORT, Outcome
from evaluation.reporting.intervals import Interval
from evaluation.reporting.statistics import Lengths, Share, Summary, by_prompt, of_prompts

_RATES = ("win rate", "Wilson", "bootstrap", "length-controlled", "bootstrap")
_JUDGE = ("both orders agree", "first place wins", "bootstrap", "mean characters, model / baseline")
_COUNTS = {
    "pairs": "pairs", "scored": "scored", "inconsistent": "inconsistent", "verdicts": "judged", "ties": "ties",
    "for the first place": "first_wins", "unparsable": "unparsable", "of them cut": "cut", "failed": "failed",
}  # fmt: skip
_PARTS = (("win", "tab:green"), ("tie", "lightgrey"), ("loss", "tab:red"))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One model (the file --a) against the baseline (--b), with the outcomes and lengths that summary was made of."""

    model: str
    baseline: str
    judge: str
    template: str
    summary: Summary
    outcomes: Sequence[Outcome]
    lengths: Lengths | None = None


def write(folder: Path, comparisons: Sequence[Comparison]) -> list[Path]:
    """-> the paths of REPORT in folder. The same input gives the same bytes."""
    _check(comparisons)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in REPORT]
    files.write_text(paths[0], page(comparisons))
    numbers = [{**_names(comparison), **asdict(comparison.summary)} for comparison in comparisons]
    files.write_text(paths[1], json.dumps(numbers, indent=2) + "\n")
    files.write_bytes(paths[2], figure_of(comparisons))
    files.write_rows(paths[3], (row for comparison in comparisons for row in prompt_rows(comparison)))
    return paths


def _names(comparison: Comparison) -> dict[str, str]:
    return {name: getattr(comparison, name) for name in ("model", "baseline", "judge", "template")}


def _check(comparisons: Sequence[Comparison]) -> None:
    if not comparisons:
        raise ValueError("report: want at least one comparison, got none")
    settings = {(c.baseline, c.judge, c.template, c.summary.orders, c.summary.level) for c in comparisons}
    if len(settings) > 1:
        raise ValueError(
            f"report: want one baseline, judge, template, number of orders and level in a table, got {sorted(settings)}"
        )
    models = [comparison.model for comparison in comparisons]
    if len(set(models)) != len(models):
        raise ValueError(f"report: want each model once, got {models}")


def prompt_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """What each prompt adds to the shares, and the lengths of its responses."""
    samples = by_prompt(comparison.outcomes)
    return [
        {
            "model": comparison.model,
            **asdict(shares),
            "lengths": _lengths_of(samples[shares.prompt_id], comparison.lengths),
        }
        for shares in of_prompts(comparison.outcomes)
    ]


def _lengths_of(samples: Sequence[Outcome], lengths: Lengths | None) -> list[list[int]] | None:
    """Of each scored sample, [--a's, --b's]."""
    if lengths is None:
        return None
    return [list(lengths[o.prompt_id, o.sample]) for o in samples if o.score is not None]


def page(comparisons: Sequence[Comparison]) -> str:
    """The report as Markdown."""
    first, summary = comparisons[0], comparisons[0].summary
    orders = {0: "nothing was judged", 1: "one order of each pair", 2: "both orders of each pair"}[summary.orders]
    level = f"{100 * summary.level:g} %"
    lines = [
        f"# Win rate against {_cell(first.baseline)}",
        "",
        f"Judge {_cell(first.judge)}, template {_cell(first.template)}, {orders}. Intervals at {level}. n counts "
        "prompts: the samples of a prompt are averaged before anything else, and a prompt without a scored pair is "
        "left out of the shares of outcomes.",
        "",
        "![win, tie and loss of each model, and its win rate](report.png)",
        "",
        *_table(comparisons, ("win", "tie", "loss"), _outcome_cells),
        "In brackets Wilson's interval for n prompts. Where a judge was asked in both orders and contradicted itself, "
        "the pair is a tie.",
        "",
        *_table(comparisons, _RATES, _rate_cells),
        "The win rate counts a tie as half a win. The bootstrap resamples prompts. The length-controlled rate is what "
        "a logistic regression on the difference in length predicts at equal length.",
        "",
        *_table(comparisons, _JUDGE, _judge_cells),
        "First place: of the verdicts that are no tie, the share that went to the response shown first, 50 % without "
        "position bias. In brackets Wilson's interval, in both columns; their n leaves out prompts without a pair of "
        "verdicts, or without a verdict that is no tie.",
        "",
        *_table(comparisons, tuple(_COUNTS), _count_cells, n=False),
        "Scored pairs have a verdict in every order asked. Unparsable: answers without a verdict, some of them cut at "
        "the judge's limit of tokens. Failed: no answer. None of them is ever scored.",
        "",
        *_notes(comparisons),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _table(
    comparisons: Sequence[Comparison], columns: Sequence[str], cells: Callable[[Summary], list[str]], *, n: bool = True
) -> list[str]:
    """n: whether the second column is the number of prompts that were scored."""
    head = ["model", *(["n"] if n else []), *columns]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for comparison in comparisons:
        count = [str(comparison.summary.win_rate.n)] if n else []
        lines.append(f"| {' | '.join([_cell(comparison.model), *count, *cells(comparison.summary)])} |")
    return [*lines, ""]


def _outcome_cells(summary: Summary) -> list[str]:
    return [_with_wilson(getattr(summary, part)) for part, _ in _PARTS]


def _rate_cells(summary: Summary) -> list[str]:
    rate, controlled = summary.win_rate, summary.length_controlled
    cells = [_percent(rate.value), _interval(rate.wilson), _interval(rate.bootstrap)]
    if controlled is None:
        return [*cells, "not asked for", "none"]
    return [*cells, _percent(controlled.value), _interval(controlled.interval)]


def _judge_cells(summary: Summary) -> list[str]:
    lengths = summary.mean_lengths
    return [
        _with_wilson(summary.consistency),
        _with_wilson(summary.first_place),
        _interval(summary.first_place.bootstrap),
        "none" if lengths is None else f"{lengths[0]:.0f} / {lengths[1]:.0f}",
    ]


def _count_cells(summary: Summary) -> list[str]:
    return [str(getattr(summary, name)) for name in _COUNTS.values()]


def _notes(comparisons: Sequence[Comparison]) -> list[str]:
    """What a reader of the tables has to know about single numbers."""
    notes = []
    for comparison in comparisons:
        model, summary = _cell(comparison.model), comparison.summary
        unscored = summary.prompts - summary.win_rate.n
        if unscored:
            notes.append(f"- {model}: {unscored} of {summary.prompts} prompts have no scored pair.")
        if summary.cut:
            notes.append(
                f"- {model}: {summary.cut} answers of the judge were cut before a verdict; a larger --max-tokens (with "
                "another --out) gives them room."
            )
        if summary.win_rate.n == 1:
            notes.append(f"- {model}: one prompt has no bootstrap interval.")
        controlled = summary.length_controlled
        if controlled is not None and controlled.reason:
            notes.append(f"- {model}: no length-controlled win rate: {controlled.reason}.")
        if controlled is not None and controlled.diverged:
            notes.append(
                f"- {model}: the length-controlled regression has no solution on {controlled.diverged} of "
                f"{controlled.draws} resamples, which widen its interval as 0 below and as 1 above."
            )
    return [*notes, ""] if notes else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"


def _interval(interval: Interval | None) -> str:
    return "none" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _with_wilson(share: Share) -> str:
    return "none" if share.value is None else f"{_percent(share.value)} [{_interval(share.wilson)}]"


def figure_of(comparisons: Sequence[Comparison]) -> bytes:
    """-> PNG. Left win, tie and loss of each model; right its win rate and the length-controlled one."""
    with style.context("default"):
        figure = Figure(figsize=(9, 1.4 + 0.5 * len(comparisons)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        outcomes, rates = figure.subplots(1, 2, sharey=True)
        for row, comparison in enumerate(comparisons):
            _draw_outcomes(outcomes, row, comparison.summary)
            _draw_rates(rates, row, comparison.summary)
        models = [comparison.model for comparison in comparisons]
        outcomes.set_yticks(range(len(models)), models, parse_math=False)
        outcomes.set(xlim=(0, 100), xlabel="% of prompts", ylim=(len(models) - 0.5, -0.5))
        rates.axvline(50, color="black", linewidth=0.6)
        rates.set(xlim=(0, 100), xlabel="%, bars: bootstrap over prompts")
        for ax in (outcomes, rates):
            _legend(ax)
        title = f"against {comparisons[0].baseline}, judged by {comparisons[0].judge}"
        figure.suptitle(title, fontsize=9, parse_math=False)
        made = io.BytesIO()
        figure.savefig(made, format="png", metadata={"Software": None})
        return made.getvalue()


def _draw_outcomes(ax: Axes, row: int, summary: Summary) -> None:
    left = 0.0
    for part, colour in _PARTS:
        width = 100 * (getattr(summary, part).value or 0.0)
        ax.barh(row, width, left=left, height=0.6, color=colour, label=part)
        left += width


def _draw_rates(ax: Axes, row: int, summary: Summary) -> None:
    rate, controlled = summary.win_rate, summary.length_controlled
    _draw_point(ax, row - 0.12, rate.value, rate.bootstrap, "o", "win rate")
    if controlled is not None:
        _draw_point(ax, row + 0.12, controlled.value, controlled.interval, "s", "length-controlled")


def _draw_point(ax: Axes, row: float, value: float | None, interval: Interval | None, mark: str, label: str) -> None:
    if value is None:
        return
    if interval is not None:
        ax.plot([100 * interval.low, 100 * interval.high], [row, row], "-", color="tab:blue", linewidth=1.2)
    ax.plot([100 * value], [row], mark, color="tab:blue", markersize=4, label=label, clip_on=False)


def _legend(ax: Axes) -> None:
    """Above the axes, each label once."""
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        ax.legend(list(once.values()), list(once), fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
