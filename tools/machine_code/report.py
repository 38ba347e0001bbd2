"""The rows as text, and as the table of docs/kernels.md between its two markers."""

from __future__ import annotations

from pathlib import Path

from tools.machine_code.gates import Row

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "kernels.md"
BEGIN, END = "<!-- machine code: begin -->", "<!-- machine code: end -->"
HEADINGS = ("card", "kernel", "variant", "tile", "registers", "spills", "shared KiB", "tensor-core", "async copies")


def line(row: Row) -> str:
    verdict = "; ".join(row.broken) or "ok"
    return f"{row.card:8} {row.kernel:22} {row.variant:42} {row.tiles:24} {tuple(row.numbers)} {verdict}"


def table(rows: list[Row]) -> str:
    head = ["| " + " | ".join(HEADINGS) + " |", "| " + " | ".join("---" for _ in HEADINGS) + " |"]
    return "\n".join(head + [_cells(row) for row in rows])


def write(rows: list[Row], versions: str) -> None:
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{versions}\n\n{table(rows)}\n{END}{after}")


def _cells(row: Row) -> str:
    n = row.numbers
    copies = "-" if n.async_copies is None else n.async_copies
    cells = (
        row.card, row.kernel, row.variant, row.tiles, n.registers, n.spilled, f"{n.shared_bytes / 1024:.0f}",
        n.main_loop, copies,
    )  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
