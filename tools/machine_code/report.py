"""The rows as text, and as the table of docs/kernels.md between its two markers."""

from __future__ import annotations

from tools import marked
from tools.machine_code.gates import Row
from tools.marked import table

HEADINGS = ("card", "kernel", "variant", "tile", "registers", "spills", "shared KiB", "tensor-core", "async copies")


def line(row: Row) -> str:
    verdict = "; ".join(row.broken) or "ok"
    return f"{row.card:8} {row.kernel:22} {row.variant:42} {row.tiles:24} {tuple(row.numbers)} {verdict}"


def write(rows: list[Row], versions: str) -> None:
    marked.write(
        marked.DOCS / "kernels.md", "machine code", f"{versions}\n\n{table(HEADINGS, [_cells(row) for row in rows])}"
    )


def _cells(row: Row) -> tuple[object, ...]:
    n = row.numbers
    copies = "-" if n.async_copies is None else n.async_copies
    return (
        row.card, row.kernel, row.variant, row.tiles, n.registers, n.spilled, f"{n.shared_bytes / 1024:.0f}",
        n.main_loop, copies,
    )  # fmt: skip
