"""Is it slower than it was? python -m benchmarks.guard (make bench-check)

Runs a short set of the head's workloads again, with the commands of this device class's committed results, and compares
ratios of times taken in turn, never times: ours by the library's products, by naive and by compiled code. All are
printed; one beyond MARGIN fails, and so does one that was measured and is not any more.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import records
from benchmarks.parts import Part, environment, python, run
from benchmarks.providers import PROVIDERS
from benchmarks.records import Record
from benchmarks.report.results import FOLDER, Results, device_slug, newest
from benchmarks.report.shape import COMPILED, NAIVE, Case, case_of, cases, is_ours, the
from benchmarks.report.tables import title

# medians of interleaved rounds of one commit differ by a few per cent on an idle machine and by up to a fifth on one
# whose cores are shared: what is beyond this is the code
MARGIN = 1.25
MODES = ("step", "forward")
RIVALS = (NAIVE, COMPILED)
OURS = tuple(name for name in PROVIDERS if PROVIDERS[name].ours)
ROUNDS, LIMIT = 7, 150.0
REPLACED = ("--providers", "--rounds", "--warmup", "--save")  # flags of a committed command


class Ratio(NamedTuple):
    """A time of ours by another, then and now."""

    where: str
    what: str
    was: float
    now: float | None  # None: one of both is not timed any more

    @property
    def worse(self) -> bool:
        return self.now is None or self.now > MARGIN * self.was


def chosen(results: Results) -> dict[tuple[Case, str], str]:
    """The least workload of each dtype, mode and masked share that ours were timed on -> the command."""
    head = [record for record in results.of("head") if record.mode in MODES]
    found: dict[tuple[object, ...], tuple[Case, str, str]] = {}
    for case, own in cases(head).items():
        for record in own:
            if record.state != "timed" or not is_ours(record.provider):
                continue
            key = (case.dtype, record.mode, case.masked)
            if key not in found or case.size < found[key][0].size:
                found[key] = (case, str(record.mode), record.command)
    return {(case, mode): command for case, mode, command in found.values()}


def again(command: str) -> list[str]:
    """The arguments of a committed command of bench_head, for fewer providers and other rounds."""
    words = shlex.split(command)
    if words[:3] != ["python", "-m", "benchmarks.bench_head"]:
        raise ValueError(f"again: want a command of benchmarks.bench_head, got {command}")
    kept: list[str] = []
    dropping = False
    for word in words[3:]:
        dropping = word in REPLACED or (dropping and not word.startswith("--"))
        if not dropping and word != "--no-memory":
            kept.append(word)
    return [*kept, "--rounds", str(ROUNDS), "--no-memory", "--providers", *RIVALS, *OURS]


def compared(then: Sequence[Record], now: Sequence[Record], case: Case, mode: str) -> Iterator[Ratio]:
    """Of the workload in its mode: ours by the products, and by each rival that was timed then."""
    where = f"{title(case)}, {mode}"
    for name in OURS:
        was, found = the(then, name, mode), the(now, name, mode)
        if was is None or was.ratio is None:
            continue
        yield Ratio(where, f"{name} by the library's products", was.ratio, None if found is None else found.ratio)
        for rival in RIVALS:
            before, after = _by(was, the(then, rival, mode)), _by(found, the(now, rival, mode))
            if before is not None:
                yield Ratio(where, f"{name} by {rival}", before, after)


def _by(ours: Record | None, rival: Record | None) -> float | None:
    return ours.ms / rival.ms if ours is not None and rival is not None and ours.ms and rival.ms else None


def measured(commands: Sequence[str], folder: Path) -> list[Record]:
    """A command that fails is shown, and its ratios are missing."""
    parts = []
    for i, arguments in enumerate(map(again, commands), 1):
        save = folder / f"{i}.jsonl"
        command = python("-m", "benchmarks.bench_head", *arguments, "--save", save)
        parts.append(Part(name=f"workload {i}", item=7, command=command, seconds=LIMIT, save=save))
    run(parts, budget=LIMIT * len(parts), logs=folder)
    return [record for part in parts if part.save and part.save.exists() for record in records.read(part.save)]


def verdict(ratios: Sequence[Ratio]) -> str:
    """A line a ratio."""
    lines = [f"{'was':>7} {'now':>7} {'change':>7}"]
    for ratio in ratios:
        now = "-" if ratio.now is None else f"{ratio.now:.3f}"
        change = "gone" if ratio.now is None else f"{ratio.now / ratio.was:.2f} x"
        mark = f"  WORSE by more than {MARGIN:g} x" if ratio.worse else ""
        lines.append(f"{ratio.was:>7.3f} {now:>7} {change:>7}  {ratio.what}; {ratio.where}{mark}")
    worse = sum(ratio.worse for ratio in ratios)
    return "\n".join(
        [*lines, f"{worse} of {len(ratios)} ratios worse than the committed ones by more than {MARGIN:g} x"]
    )


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the committed set is a processor's
    device = device_slug(environment())
    known = [results for results in newest(args.results) if results.device == device]
    wanted = chosen(known[0]) if known else {}
    if not wanted:
        print(
            f"benchmarks.guard: nothing compared: {args.results} has no times of ours on a device of the class "
            f"{device}; `make bench` writes them"
        )
        return 0
    print(f"{device}: against {known[0].path.name}, commit {known[0].environment['commit']}\n")
    with tempfile.TemporaryDirectory(prefix="bench-check-") as name:
        now = measured(list(wanted.values()), Path(name))
    ratios = [
        ratio
        for (case, mode) in wanted
        for ratio in compared(_of(known[0].of("head"), case), _of(now, case), case, mode)
    ]
    print(verdict(ratios))
    return 1 if any(ratio.worse for ratio in ratios) else 0


def _of(own: Sequence[Record], case: Case) -> list[Record]:
    return [record for record in own if case_of(record) == case]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guard", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder; default benchmarks/results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
