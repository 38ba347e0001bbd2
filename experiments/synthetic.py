"""The paper's synthetic experiments (arXiv 2506.07492, Sec. 5), and the same questions on a small transformer.

    python experiments/synthetic.py figure3      convergence at a small lambda
    python experiments/synthetic.py figure8      convergence at a large lambda
    python experiments/synthetic.py figure4      the whole range of lambda
    python experiments/synthetic.py figure5      preservation of a good prompt
    python experiments/synthetic.py language     a transformer over an enumerable language
    python experiments/synthetic.py all          everything

Figures (PNG, PDF), tables (Markdown) and every final policy (CSV) go to --out. docs/experiments.md discusses them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]

import torch  # noqa: E402

from experiments import bandits, figures, tables  # noqa: E402
from tools import marked  # noqa: E402

FIGURES = ("figure3", "figure4", "figure5", "figure8", "language")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=[*FIGURES, "all"])
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "out", help="where the files go")
    parser.add_argument("--publish", action="store_true", help="figures and tables also into docs/experiments.md")
    parser.add_argument("--quick", action="store_true", help="fewer seeds, lambdas and steps: a look, not the result")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(min(2, torch.get_num_threads()))  # the tables are small: more threads only wait
    for name in FIGURES if args.what == "all" else (args.what,):
        began = time.perf_counter()
        lines = make(name, args.out, args.quick, alone=args.what != "all")
        if args.publish:
            publish(name, args.out, lines)
        print(f"{name} ({time.perf_counter() - began:.0f} s)\n\n{lines}\n", flush=True)


def make(name: str, out: Path, quick: bool, alone: bool) -> str:
    """The files of one figure; -> its table. alone: figures 3 and 8 train the two ends of lambda only."""
    settings = bandits.QUICK if quick else bandits.Settings()
    if name == "language":
        from experiments import language

        return language.report(out, quick)
    if name == "figure5":
        kept = bandits.preservation(settings)
        figures.save(figures.preservation(kept), out, name)
        rows = tables.every_seed(kept.sampled, kept.world, kept.fits, "sampled")
        rows += tables.every_seed(kept.exact, kept.world, kept.fits, "exact")
        text = tables.preservation_table(kept)
    else:
        data = bandits.interpolation(settings, ends_only=alone and name != "figure4")
        drawn = figures.sweep(data) if name == "figure4" else figures.convergence(data, largest=name == "figure8")
        figures.save(drawn, out, name)
        rows = tables.every_seed(data.runs, data.world, data.fits, "sampled")
        text = tables.interpolation_table(data)
    tables.write_csv(out / f"{name}.csv", rows)
    (out / f"{name}.md").write_text(text + "\n")
    return text


def publish(name: str, out: Path, text: str) -> None:
    shutil.copy(out / f"{name}.png", marked.DOCS / "figures")
    if name in ("figure4", "figure5", "language"):  # 3 and 8 are the ends of 4
        marked.write(marked.DOCS / "experiments.md", name, text)


if __name__ == "__main__":
    main()
