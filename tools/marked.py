"""Text that a command writes into a page, between two markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
README = Path(__file__).parent.parent / "README.md"


def read(page: Path, name: str) -> str:
    return _parts(page, name)[1]


def write(page: Path, name: str, text: str) -> None:
    before, _, after = _parts(page, name)
    page.write_text(f"{before}{text}{after}")


def table(headings: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    """What stands before the text, the text, and what stands after it; the markers are not part of the text."""
    begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    before, rest = page.read_text().split(begin)
    text, after = rest.split(end)
    return before + begin, text, end + after
