"""A Markdown table of saved results: python -m benchmarks.report benchmarks/results/FILE.jsonl"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    print(table([json.loads(line) for line in parser.parse_args().file.read_text().splitlines()]))


def table(records: list[dict]) -> str:
    """One row a record; errors are those of loss, dh and dw where they were made."""
    lines = [
        "| dtype, mode, scored tokens | provider | ms | products | peak MiB | error of loss, dh, dw |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in records:
        peak = "not measured" if r["peak_mib"] is None else f"{r['peak_mib']:.0f}"
        errors = ", ".join(f"{e:.1e}" for e in r["error"])
        lines.append(
            f"| {r['dtype']}, {r['mode']}, {r['scored']} of {r['tokens']} | {r['provider']} | {r['ms']:.0f} "
            f"| {r['ratio']:.2f} | {peak} | {errors} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
