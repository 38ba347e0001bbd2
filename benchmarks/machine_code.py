"""What the main loops are made of, and what a head should take: python -m benchmarks.machine_code --write

No GPU wanted. The products of every card are compiled and held against their gates (tools/machine_code); of each main
loop the instructions are counted by class, so that a regression shows as a difference in docs/machine-code.md. Times
are predicted from products, bytes and launches, and measured by nobody.
"""

from __future__ import annotations

import argparse
import sys

import triton

from tools import marked
from tools.machine_code import predicted, report
from tools.machine_code.gates import Row, check_named
from tools.machine_code.occupancy import LIMITS

PAGE = marked.DOCS / "machine-code.md"
LOOPS, TIMES = "main loops", "predicted times"


def main(arguments: list[str] | None = None) -> int:
    args = _options(arguments)
    rows: list[Row] = []
    for name in () if args.times else args.cards:
        rows += check_named(name, loops=True)
        print(f"{name}: compiled", file=sys.stderr, flush=True)
    texts = {LOOPS: loops_text(rows), TIMES: predicted.text()}
    for name in (TIMES,) if args.times else texts:
        print(texts[name], end="\n\n")
        if args.write:
            marked.write(PAGE, name, texts[name])
    broken = [report.line(row) for row in rows if row.broken]
    print("\n".join(broken) or "no gate is broken")
    return int(bool(broken))


def loops_text(rows: list[Row]) -> str:
    return f"Triton {triton.__version__}:\n\n{marked.table(report.LOOPS, report.loops(rows))}"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.machine_code", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--cards", nargs="+", choices=list(LIMITS), default=list(LIMITS), help="default: all")
    parser.add_argument("--times", action="store_true", help="only the predicted times: nothing is compiled")
    parser.add_argument("--write", action="store_true", help="into docs/machine-code.md")
    args = parser.parse_args(arguments)
    if args.write and not args.times and set(args.cards) != set(LIMITS):
        parser.error("--write wants every card")
    return args


if __name__ == "__main__":
    sys.exit(main())
