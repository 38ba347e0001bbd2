"""Text that a command writes into a page, between two markers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
README = Path(__file__).parent.parent / "README.md"


def read(page: Path, name: str) -> str:
    return _parts(page, name)[1]


def write(page: Path, name: str, text: str) -> None:
    before, _, after = _parts(page, name)
    page.write_text(f"{before}{text}{after}")


def table(headings: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    return "\n".join(lines([headings, tuple("---" for _ in headings), *rows]))


def lines(rows: Sequence[tuple[object, ...]]) -> list[str]:
    return ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def command(doc: str, pages: Mapping[str, Path], generated: Callable[[], Mapping[str, str]]) -> None:
    """Of a tool that makes the texts: they are printed or, with --write, go into their pages."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the pages; otherwise they are printed")
    args = parser.parse_args()
    for name, text in generated().items():
        if args.write:
            write(pages[name], name, text)
        else:
            print(text, end="\n\n")


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    """What stands before the text, the text, and what stands after it; the markers are not part of the text."""
    begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    before, rest = page.read_text().split(begin)
    text, after = rest.split(end)
    return before + begin, text, end + after
