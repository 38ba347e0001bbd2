"""python -m tools.machine_code: compiles the Triton kernels for every card and holds the code against the gates."""

from __future__ import annotations

import argparse
import datetime
import sys

import torch
import triton

from expo_kernels.kernels.triton.tuning import CARDS
from tools import marked
from tools.machine_code import report
from tools.machine_code.gates import check


def main() -> int:
    options = _options()
    rows = []
    for name in options.cards:
        for row in check(CARDS[name], quick=options.quick):
            rows.append(row)
            print(report.line(row), flush=True)
    if options.quick:
        print("\n".join(marked.lines(report.loops(rows))))  # as docs/machine-code.md has them
    broken = [row for row in rows if row.broken]
    versions = f"triton {triton.__version__}, torch {torch.__version__}, {datetime.date.today().isoformat()}"
    if options.write:
        report.write(rows, f"`python -m tools.machine_code --write`, {versions}:")
    print(f"{versions}: {len(rows)} kernels compiled, {len(broken)} break a gate")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", nargs="+", choices=list(CARDS), default=list(CARDS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="the representative subset that make test runs")
    parser.add_argument("--write", action="store_true", help="renew the table in docs/kernels.md")
    options = parser.parse_args()
    if options.write and (options.quick or set(options.cards) != set(CARDS)):
        parser.error("--write wants every card and every kernel")
    return options


if __name__ == "__main__":
    sys.exit(main())
