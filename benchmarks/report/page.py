"""docs/performance.md: a section a device, each from that device's newest results alone, and what is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import tables, targets, whole_steps
from benchmarks.report.results import Results
from tools.marked import table

BENCHES = ("head", "scaling", "memory", "accuracy", "products", "packing")
FIRST = "<!-- Written by `python -m benchmarks.report` from benchmarks/results; nothing here is edited by hand. -->\n"
TITLE = """# Performance

Written by `python -m benchmarks.report` from the newest results of each device in `benchmarks/results/`, which
`make bench` measures (`make gpu-check` on a GPU); the command that made a table stands under it. Nobody is timed
before being held against float64: ours to 1.25 times naive PyTorch's error, a peer to four times. Providers take
turns, so times are compared within one table; ours are **bold**. "x products" is time by that of the library's own
products of the scored tokens in the same run: three for `step` (all gradients), two for `frozen` (a frozen head),
one for `forward`. TF/s counts those products' operations alone. Peaks are bytes above inputs and gradients. How it
is computed, and in which precision: [numerics.md](numerics.md).
"""
NOTHING_YET = "There are no results yet: `make bench` measures this machine.\n"


class Section(NamedTuple):
    heading: str
    what: str  # that it shows
    plots: tuple[str, ...]
    lines: list[str]


def page(all_results: Sequence[Results], plots: Sequence[Path], predicted: Sequence[str]) -> str:
    """plots: those that were drawn, beside which the page stands one folder up."""
    parts = [FIRST, TITLE]
    parts += [_device(results, plots) for results in all_results] or [NOTHING_YET]
    if predicted:
        parts.append("\n".join(["## Predicted, not measured", "", *predicted]).rstrip() + "\n")
    return "\n".join(parts)


def _device(results: Results, plots: Sequence[Path]) -> str:
    if unknown := sorted({record.bench for record in results.records} - set(BENCHES)):
        raise ValueError(f"{results.path}: want records of {', '.join(BENCHES)}, got some of {', '.join(unknown)}")
    drawn = {path.stem.removeprefix(f"{results.device}-"): path for path in plots if _belongs(path, results)}
    lines = [f"## {device(results)}", "", *_environment(results)]
    for section in _sections(results):
        lines += [f"### {section.heading}", "", section.what, ""] if section.what else [f"### {section.heading}", ""]
        for name in section.plots:
            if name in drawn:
                path = drawn[name]
                lines += [f"![{section.heading}]({path.parent.name}/{path.name})", ""]
        lines += section.lines or ["Not measured.", ""]
    return "\n".join(lines)


def _belongs(path: Path, results: Results) -> bool:
    return path.stem.rpartition("-")[0] == results.device


def _sections(results: Results) -> list[Section]:
    return [
        Section("Targets", "", (), targets.section(results)),
        Section("What the device reaches", "", (), whole_steps.ceilings(results.ceilings)),
        Section("The head", "", ("roofline",), tables.head(results.of("head"))),
        Section("Time against N, V and T", "", ("time",), tables.scaling(results.of("scaling"))),
        Section("Memory", "", ("memory",), tables.memory(results.of("memory"))),
        Section("Error against speed", "", ("error",), tables.speed_and_error(results.of("head"))),
        Section("Error", "", (), tables.accuracy(results.of("accuracy"))),
        Section("Whole training steps", "", (), whole_steps.steps(results.steps)),
        Section("Packed rows and shared prompts", "", (), whole_steps.packing(results.of("packing"))),
        *([Section("Products", "", (), tables.products(own))] if (own := results.of("products")) else []),
    ]


def device(results: Results) -> str:
    """Its name as people say it."""
    environment = results.environment
    if environment["simd"] is None:
        return str(environment["device"])
    return f"{environment['device']}, {environment['threads']} threads, {environment['simd']}"


def _environment(results: Results) -> list[str]:
    environment = results.environment
    names = ("date", "torch", "triton", "python", "driver", "platform", "commit")
    return [
        table(names, [tuple("-" if environment[name] is None else environment[name] for name in names)]), "",
        f"All records: `benchmarks/results/{results.path.name}`.", "",
    ]  # fmt: skip
