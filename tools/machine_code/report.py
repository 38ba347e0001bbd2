"""The rows as text, as the table of docs/kernels.md, and their main loops as the table of docs/machine-code.md."""

from __future__ import annotations

from tools import marked
from tools.machine_code.gates import Row
from tools.machine_code.loops import CLASSES
from tools.marked import table

HEADINGS = (
    "card", "kernel", "variant", "tile", "registers", "spills", "shared KiB", "programs", "tensor-core", "async copies",
)  # fmt: skip
LOOPS = ("card", "kernel", "variant", "tile", "programs", *CLASSES, "all", "matrix share")


def line(row: Row) -> str:
    verdict, numbers = "; ".join(row.broken) or "ok", row.numbers
    held = f"{numbers.programs(row.card)} a multiprocessor"
    return f"{row.card:8} {row.kernel:22} {row.variant:42} {row.tiles:24} {tuple(numbers[:5])}, {held} {verdict}"


def write(rows: list[Row], versions: str) -> None:
    marked.write(
        marked.DOCS / "kernels.md", "machine code", f"{versions}\n\n{table(HEADINGS, [_cells(row) for row in rows])}"
    )


def _cells(row: Row) -> tuple[object, ...]:
    n = row.numbers
    copies = "-" if n.async_copies is None else n.async_copies
    return (
        row.card, row.kernel, row.variant, row.tiles, n.registers, n.spilled, f"{n.shared_bytes / 1024:.0f}",
        n.programs(row.card), n.main_loop, copies,
    )  # fmt: skip


def loops(rows: list[Row]) -> list[tuple[str, ...]]:
    """Of each kernel with a main loop what stands in it, by class, and the share that multiplies matrices."""
    made = []
    for row in rows:
        loop = row.numbers.loop
        if loop is not None:
            whole = f"{loop.total}, unrolled" if loop.unrolled else loop.total
            cells = (*(loop.counts[name] for name in CLASSES), whole, f"{100 * loop.share:.1f} %")
            first = (row.card, row.kernel, row.variant, row.tiles, row.numbers.programs(row.card))
            made.append(tuple(str(cell) for cell in (*first, *cells)))
    return made
