"""Rebuilds docs/performance.md, its plots and the README's table from benchmarks/results: python -m benchmarks.report

Of each device the newest results count, and its section follows from them alone; --check writes nothing and fails
where something is not what the results give.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.plan.tables import tables
from benchmarks.report import page, plots, readme
from benchmarks.report.results import FOLDER, Results, newest
from tools import marked


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.check:
        stale = check(args.results, args.docs, args.readme)
        print("\n".join(stale) or "docs/performance.md, its plots and the README's table are what the results give")
        return 1 if stale else 0
    for path in write(args.results, args.docs, args.readme):
        print(f"written: {path}")
    return 0


def write(results: Path, docs: Path, readme_page: Path) -> list[Path]:
    """-> what was written; plots of devices that have no results any more are removed."""
    text, table, drawn = made(results, docs / "performance")
    for path in (docs / "performance").glob("*.svg"):
        if path not in drawn:
            path.unlink()
    (docs / "performance.md").write_text(text, encoding="utf-8")
    marked.write(readme_page, readme.MARKER, table)
    return [docs / "performance.md", *drawn, readme_page]


def check(results: Path, docs: Path, readme_page: Path) -> list[str]:
    """-> what is not what the results give."""
    with tempfile.TemporaryDirectory() as name:
        text, table, drawn = made(results, Path(name) / "performance")
        wanted = {path.name: path.read_bytes() for path in drawn}
    there = {path.name: path.read_bytes() for path in (docs / "performance").glob("*.svg")}
    stale = [
        f"docs/performance/{name}"
        for name in sorted(wanted.keys() | there.keys())
        if wanted.get(name) != there.get(name)
    ]
    if not (docs / "performance.md").exists() or (docs / "performance.md").read_text(encoding="utf-8") != text:
        stale.append("docs/performance.md")
    if marked.read(readme_page, readme.MARKER) != table:
        stale.append(f"README.md, {readme.MARKER}")
    return [f"{what} is not what benchmarks/results give: python -m benchmarks.report" for what in stale]


def made(results: Path, folder: Path) -> tuple[str, str, list[Path]]:
    """-> the page, the README's table, the plots, which are in the folder."""
    every = newest(results)
    drawn = [path for one in every for path in plots.draw(one, folder)]
    return page.page(every, drawn, predicted(every)), readme.text(every), drawn


def predicted(every: Sequence[Results]) -> list[str]:
    """Lines of Markdown; of a card that was measured they follow from what it reached."""
    return tables([dataclasses.asdict(row) for results in every for row in results.ceilings])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something is stale")
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--docs", type=Path, default=marked.DOCS)
    parser.add_argument("--readme", type=Path, default=marked.README, help="with the markers of the table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
