"""The table and plot of docs/sparsity.md, of what bench_sparse --save wrote: python -m benchmarks.report.sparsity"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.measure import ROOT
from benchmarks.report.plots import STYLE, save
from benchmarks.report.results import FOLDER, SAVE
from tools import marked

ROWS = FOLDER / "sparsity.jsonl"
PLOT = ROOT / "docs" / "figures" / "sparsity.svg"
HEADINGS = (
    "way", "of three products", "kept", "mass dropped", "most of a row", "dh off", "dw off", "of the batch's variance",
)  # fmt: skip
# wanted: under so much of three products up to so many nats, by a way that leaves out next to nothing
WANTED = ((1.5, 0.50), (2.7, 0.65))
MASS, VARIANCE = 0.005, 1e-3  # dropped at most by a certified way; added at most by an unbiased one, of the batch's own
WORKLOADS = {"trained": "made", "text_lm_big": "a small LM's"}  # another head: its folder's name
Row = dict[str, Any]


def main() -> None:
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    marked.write(marked.DOCS / "sparsity.md", "speed", page(rows))
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    save(drawn(rows), PLOT)
    print(f"written: docs/sparsity.md, {PLOT.relative_to(ROOT)}")


def page(rows: Sequence[Row]) -> str:
    parts = []
    for key, own in workloads(rows).items():
        D, V, workload, tokens, dtype, entropy = key
        first = own[0]
        title = f"**N {tokens}, D {D}, V {V}, {WORKLOADS.get(workload, workload)}, {dtype}, {entropy:.2f} nats.** "
        title += f"{first['device']}, {first['threads']} threads, {first['date']}, {first['commit']}; "
        title += f"three fp32 products {first['products_s']:.2f} s"
        parts.append(f"{title}\n\n{marked.table(HEADINGS, [cells(row) for row in own])}\n\n{verdict(own)}")
    command = "; ".join(dict.fromkeys(f"`{SAVE.sub('', row['command'])}`" for row in rows))
    return "\n\n".join(["![speed against what is left out](figures/sparsity.svg)", *parts, command])


def workloads(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["D"], row["V"], row.get("workload", "trained"), row["tokens"], row["dtype"], row["entropy"])
        found.setdefault(key, []).append(row)
    return dict(sorted(found.items()))


def verdict(own: Sequence[Row]) -> str:
    """The fastest way that leaves out next to nothing, against what is wanted at this entropy."""
    limit = next((limit for entropy, limit in WANTED if own[0]["entropy"] <= entropy), None)
    if limit is None:
        return f"Above {WANTED[-1][0]} nats nothing is wanted."
    fine = [row for row in own if "ratio" in row and row["way"] != "exact" and next_to_nothing(row)]
    if not fine:
        return f"Wanted: under {limit:.2f}. No way leaves out so little here: **not met**."
    best = min(fine, key=lambda row: row["ratio"])
    met = "met" if best["ratio"] < limit else "**not met**"
    return f"Wanted: under {limit:.2f}. Least, leaving out next to nothing: {best['ratio']:.2f} ({best['way']}): {met}."


def next_to_nothing(row: Row) -> bool:
    if row["way"].startswith("certified"):
        return bool(row["dropped_mean"] <= MASS)
    return bool(row["of_noise"] <= VARIANCE)


def cells(row: Row) -> tuple[object, ...]:
    numbers = [f"{row[name]:.1e}" if row.get(name) else "" for name in ("dh", "dw", "of_noise")]
    most = f"{row['dropped_max']:.2%}" if row.get("dropped_max") else ""
    ratio = f"{row['ratio']:.2f}" if "ratio" in row else "not timed"
    return (row["way"], ratio, f"{row['kept']:.1%}", f"{row['dropped_mean']:.3%}", most, *numbers)


def drawn(rows: Sequence[Row]) -> Figure:
    """A panel a shape: time against the mass that is dropped, a line for each entropy and kind of rule."""
    found = workloads(rows)
    shapes = list(dict.fromkeys(key[:3] for key in found))
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(shapes), figsize=(4.5 * len(shapes), 3.4), squeeze=False, sharey=True)
        for axis, shape in zip(axes[0], shapes, strict=True):
            own = [(key[5], some) for key, some in found.items() if key[:3] == shape]
            for i, (entropy, some) in enumerate(own):
                for kind, mark in (("certified, row", "s"), ("certified, block", "D"), ("unbiased", "o")):
                    points = sorted((r["dropped_mean"], r["ratio"]) for r in some if r["way"].startswith(kind))
                    label = f"{entropy:.1f} nats, {kind}"
                    axis.plot(
                        *zip(*points, strict=True), f"{mark}-", color=f"C{i}", label=label, markersize=4
                    ) if points else None
                axis.axhline(some[0]["ratio"], color=f"C{i}", linewidth=0.7, linestyle=":")
            axis.set_xscale("log")
            axis.set_ylim(bottom=0)
            axis.set_title(
                f"D {shape[0]}, V {shape[1]}, {WORKLOADS.get(shape[2], shape[2])}; dotted: exact", fontsize=8
            )
            axis.set_xlabel("mass of the softmax that is dropped, mean")
        axes[0][0].set_ylabel("time / three library products")
        axes[0][-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    main()
