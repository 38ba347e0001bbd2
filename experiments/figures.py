"""The figures, as PNG and PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.bandits import Interpolation, Preservation
from experiments.tabular import total_variation

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
RESPONSES = ("a", "b", "c")


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    paths = [out / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        figure.savefig(
            path, dpi=120, bbox_inches="tight", metadata={"CreationDate": None} if path.suffix == ".pdf" else None
        )
    plt.close(figure)
    return paths


def convergence(data: Interpolation, largest: bool) -> Figure:
    """Figures 3 and 8: probabilities over training, mean and range of the middle 95 % of the seeds."""
    figure, axes = _panels(len(data.runs))
    for ax, runs in zip(axes, data.runs, strict=True):
        at = -1 if largest else 0
        _bands(ax, runs.epochs, runs.policies[:, at, :, 0], seeds=1)
        _levels(ax, data.world.best[0], data.fits["log"][:, 0].mean(0))
        ax.set_title(f"{runs.method.title}, $\\lambda$ = {float(runs.lambdas[at]):g}", fontsize=10)
        ax.set_xlabel("epochs")
    axes[0].set_ylabel(r"$\pi_\theta(y)$")
    return figure


def sweep(data: Interpolation) -> Figure:
    """Figure 4: final probabilities over lambda."""
    figure, axes = _panels(len(data.runs))
    for ax, runs in zip(axes, data.runs, strict=True):
        _bands(ax, runs.lambdas.log10(), runs.final[:, :, 0], seeds=1)
        _levels(ax, data.world.best[0], data.fits["log"][:, 0].mean(0))
        for y, level in enumerate(data.world.reference[0].tolist()):
            ax.axhline(level, color=COLOURS[y], linestyle="-.", linewidth=0.8)
        ax.set_title(runs.method.title, fontsize=10)
        ax.set_xlabel(r"$\log_{10} \lambda$")
    axes[0].set_ylabel(r"$\pi_\theta(y)$ at the end")
    axes[-1].legend(fontsize=8)
    return figure


def preservation(data: Preservation) -> Figure:
    """Figure 5: distance to pi* over lambda, on the good prompt and on the bad one; exact and sampled preferences."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 6.5), sharex=True)
    for column, (title, all_runs) in enumerate(
        (("200 draws a prompt", data.sampled), ("exact preferences", data.exact))
    ):
        for x, prompt in enumerate(("good", "bad")):
            ax = grid[x, column]
            for runs, colour in zip(all_runs, COLOURS, strict=False):
                off = total_variation(runs.final[:, :, x], data.world.best[x])  # [L, S]
                ax.plot(runs.lambdas.log(), off.mean(1), color=colour, marker=".", label=runs.method.title)
            start = float(total_variation(data.world.reference[x], data.world.best[x]))
            ax.axhline(start, color="tab:cyan", linestyle="--", linewidth=1, label=r"$\pi_{ref}$")
            if column == 0:
                fit = total_variation(data.fits["log"][:, x], data.world.best[x]).mean()
                ax.axhline(float(fit), color="grey", linestyle=":", linewidth=1, label="Bradley-Terry fit")
                ax.set_ylabel(rf"TV to $\pi^*$, {prompt} prompt")
            ax.set_title(title if x == 0 else "", fontsize=10)
            if x == 1:
                ax.set_xlabel(r"$\log \lambda$")
    grid[0, 0].legend(fontsize=7)
    return figure


def language(rows: Sequence[dict[str, Any]], start: dict[str, float]) -> Figure:
    """Distance to pi* against distance to pi_ref, a curve for each method over its parameter."""
    figure, ax = plt.subplots(figsize=(7.5, 6))
    for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        x, y = ([row[name] for row in own] for name in ("tv_reference", "tv_best"))
        ax.plot(x, y, marker="o", markersize=3, label=method, color=matplotlib.colormaps["tab20"](i))
    ax.plot([0.0], [start["tv_best"]], "k*", markersize=11, label=r"$\pi_{ref}$ (start)")
    ax.plot([start["tv_best"]], [0.0], "k^", markersize=8, label=r"$\pi^*$")
    ax.set_xlabel(r"TV to $\pi_{ref}$")
    ax.set_ylabel(r"TV to $\pi^*$")
    ax.legend(fontsize=7)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure, grid = plt.subplots(1, count, figsize=(2.9 * count, 3), sharey=True)
    for ax in grid:
        ax.set_ylim(-0.02, 1.02)
    return figure, list(grid)


def _bands(ax: Axes, x: Tensor, values: Tensor, seeds: int) -> None:
    """values [..., seeds, Y] over x: the mean, and the middle 95 %."""
    low, high = (values.quantile(q, dim=seeds) for q in (0.025, 0.975))
    for y, name in enumerate(RESPONSES):
        ax.plot(x, values.mean(seeds)[:, y], color=COLOURS[y], label=rf"$\pi_\theta({name})$")
        ax.fill_between(x, low[:, y], high[:, y], color=COLOURS[y], alpha=0.2, linewidth=0)


def _levels(ax: Axes, best: Tensor, fit: Tensor) -> None:
    """Dashed: pi*; dotted: the mean over seeds of the Bradley-Terry fits of their data."""
    for y in range(len(RESPONSES)):
        ax.axhline(float(best[y]), color=COLOURS[y], linestyle="--", linewidth=0.8)
        ax.axhline(float(fit[y]), color=COLOURS[y], linestyle=":", linewidth=0.8)
