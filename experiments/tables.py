"""Final distributions and distances, as CSV (every seed) and Markdown (over seeds)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from experiments.bandits import Interpolation, Preservation
from experiments.tabular import Runs, World, total_variation
from tools.marked import table


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def every_seed(runs: Sequence[Runs], world: World, fits: dict[str, Tensor], data: str) -> list[dict[str, object]]:
    """A row for each final policy: its probabilities, and its total variations."""
    rows: list[dict[str, object]] = []
    for one in runs:
        fit = fits[own_score(one)]
        for i, lam in enumerate(one.lambdas.tolist()):
            for seed in range(one.final.shape[1]):
                for x in range(world.best.shape[0]):
                    policy = one.final[i, seed, x]
                    row: dict[str, object] = {
                        "data": data, "method": one.method.title, "lambda": f"{lam:.6g}", "seed": seed,
                        "prompt": ("good", "bad")[x] if world.best.shape[0] > 1 else "only",
                    }  # fmt: skip
                    row |= {name: f"{p:.6f}" for name, p in zip("abc", policy.tolist(), strict=True)}
                    row["tv_best"] = f"{total_variation(policy, world.best[x]):.6f}"
                    row["tv_reference"] = f"{total_variation(policy, world.reference[x]):.6f}"
                    row["tv_fit"] = f"{total_variation(policy, fit[seed, x]):.6f}" if data == "sampled" else ""
                    rows.append(row)
    return rows


def interpolation_table(data: Interpolation) -> str:
    """The two ends of lambda; medians over seeds, the worst seed for what must hold for all."""
    rows = []
    for runs in data.runs:
        low, high = runs.final[0, :, 0], runs.final[-1, :, 0]
        off_fit = {name: (low - fit[:, 0]).abs().amax(1) for name, fit in data.fits.items()}
        rows.append((
            runs.method.title, _show(low.median(0).values), f"{low[:, 0].median():.3f} ({low[:, 0].min():.3f})",
            _worst(off_fit["log"]), _worst(off_fit["brier"]), f"{float(runs.lambdas[-1]):g}",
            _show(high.median(0).values), _worst((high - data.world.reference[0]).abs().amax(1)),
        ))  # fmt: skip
    headings = (
        "method", "lambda 1e-5: policy", "mass on the mode (least)", "off the likelihood fit: median (worst)",
        "off the Brier fit", "upper end: lambda", "policy", "off pi_ref",
    )  # fmt: skip
    return table(headings, rows)


def preservation_table(data: Preservation) -> str:
    rows = []
    for exact, sampled in zip(data.exact, data.sampled, strict=True):
        good, bad = (total_variation(exact.final[:, 0, x], data.world.best[x]) for x in (0, 1))
        own = total_variation(sampled.final[:, :, 0], data.world.best[0])  # [L, S]
        fit = total_variation(data.fits[own_score(sampled)][:, 0], data.world.best[0])
        start = float(total_variation(data.world.reference[1], data.world.best[1]))
        rows.append((
            exact.method.title, f"{good.max():.4f}", f"{bad.min():.4f}",
            f"{int((bad < 0.9 * start).sum())} of {len(bad)}", f"{own.max():.3f}", f"{(own - fit).max():+.3f}",
        ))  # fmt: skip
    headings = (
        "method", "exact: good prompt, largest TV to pi* over lambda", "bad prompt, smallest TV to pi*",
        "lambdas that improve the bad prompt by a tenth", "sampled: good prompt, largest TV",
        "largest TV less that of the data's fit",
    )  # fmt: skip
    return table(headings, rows)


def own_score(runs: Runs) -> str:
    """The score under which the method's supervised term fits the data."""
    return "brier" if runs.method.name == "expo_reg" else "log"


def _worst(off: Tensor) -> str:
    return f"{off.median():.4f} ({off.max():.4f})"


def _show(policy: Tensor) -> str:
    return "(" + ", ".join(f"{p:.3f}" for p in torch.as_tensor(policy).tolist()) + ")"
