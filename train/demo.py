"""make demo: a small model trained with DeepSpeed on preferences of a known reward, then scored by the exact answer.

python -m train.demo [--out runs/demo] [--ranks 2]

Exit code 0 only where the distance to the Bradley-Terry optimum fell to less than 0.6 of what it was.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from torch import Tensor

from toy.files import load_policy, read_truth, write_anchors, write_model, write_pairs, write_truth
from toy.task import Truth, accuracy, distances, make_task

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "train" / "configs" / "demo.yaml"
LAUNCHER = Path(sys.executable).parent / "deepspeed"
PAIRS, ANCHORS, HELD_OUT = 9600, 9600, 1000
STEP = 128  # pairs of a step, and anchors, over all ranks
ENOUGH = 0.6  # of the distance at the start
BEFORE, AFTER = ("pi_ref, before", "0.6"), ("policy, after", "tab:blue")  # label, colour


class Score(NamedTuple):
    """Of one policy, exact."""

    tv: float  # to pi*
    kl: float  # from pi*
    outside: float
    accuracy: float


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    out = args.out.resolve()
    times = [time.perf_counter()]
    shutil.rmtree(out / "policy", ignore_errors=True)  # an earlier demo's
    write_files(out)
    times.append(time.perf_counter())
    code = subprocess.run(command(out, args.ranks), cwd=ROOT, env=environment()).returncode
    times.append(time.perf_counter())
    if code:
        print(f"train.demo: want exit code 0 of the training, got {code}; its output is above, its files are in {out}")
        return 1
    truth = read_truth(out / "truth.safetensors")
    policy = load_policy(out / "policy", truth.language).distribution
    before, after, best = (score(p, truth) for p in (truth.reference, policy, truth.best))
    draw(policy, truth, out / "demo.png")
    times.append(time.perf_counter())
    print(report(before, after, best))
    parts = ("task and files", f"training (--ranks {args.ranks})", "scoring and figure")
    took = (f"{name} {end - start:.0f} s" for name, (start, end) in zip(parts, pairwise(times), strict=True))
    print(f"\n{', '.join(took)}\nfigure: {out / 'demo.png'}, model: {out / 'policy'}")
    return verdict(before, after)


def write_files(out: Path) -> None:
    """Trains pi_ref and writes it with the data that it says, and the exact answer."""
    print("training the reference model on a corpus", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    task = make_task()
    write_model(task, out / "reference")
    write_pairs(task, out / "pairs.jsonl", PAIRS, seed=1)
    write_pairs(task, out / "held_out.jsonl", HELD_OUT, seed=2)
    write_anchors(task, out / "anchors.jsonl", ANCHORS, seed=3)
    write_truth(task, out / "truth.safetensors")
    print(f"{out}: {PAIRS} pairs, {HELD_OUT} held out, {ANCHORS} anchors", flush=True)


def command(out: Path, ranks: int, name: str = "policy") -> list[str]:
    """What trains out/name on the files in out."""
    return [
        str(LAUNCHER),
        *("--num_gpus", str(ranks), "--master_port", str(_free_port())),  # processes, where there is no GPU
        *("train/run.py", "--config", str(CONFIG)),
        *("--model", str(out / "reference"), "--output_dir", str(out / name)),
        *("--train_data", str(out / "pairs.jsonl"), "--eval_data", str(out / "held_out.jsonl")),
        *("--anchor_data", str(out / "anchors.jsonl")),
        *("--per_device_train_batch_size", str(STEP // ranks), "--per_device_anchors", str(STEP // ranks)),
    ]


def score(policy: Tensor, truth: Truth) -> Score:
    """policy [X, Y + 1]"""
    found = distances(policy, truth)
    return Score(found["tv_best"], found["kl_best"], found["outside"], accuracy(policy, truth))


def report(before: Score, after: Score, best: Score) -> str:
    """A table, a line a measure."""
    names = (
        "total variation to the optimum",
        "KL from the optimum, nats",
        "mass outside the language",
        "accuracy on held-out pairs, expected",
    )
    lines = [f"\n{'':40}{'before':>10}{'after':>10}{'optimum':>10}"]
    for name, *values in zip(names, before, after, best, strict=True):
        lines.append(f"{name:40}" + "".join(f"{value:10.4f}" for value in values))
    return "\n".join(lines)


def verdict(before: Score, after: Score) -> int:
    """-> the exit code."""
    share = after.tv / before.tv
    if share < ENOUGH:
        print(f"the policy has come closer to the optimum: {share:.2f} of the distance is left")
        return 0
    print(f"train.demo: want less than {ENOUGH} of the distance to the optimum left, got {share:.2f}")
    return 1


def draw(policy: Tensor, truth: Truth, path: Path) -> None:
    """policy [X, Y + 1]. Left: all responses of all prompts against pi*; right: what one prompt's pi* says most."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), width_ratios=(1, 0.9))
    _scatter(left, policy, truth)
    _most_likely(right, policy, truth)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(w_pad=3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _scatter(ax: Axes, policy: Tensor, truth: Truth) -> None:
    best = truth.best[:, :-1].flatten()
    low = 1e-6
    for (label, colour), p in ((BEFORE, truth.reference), (AFTER, policy)):
        ax.scatter(best, p[:, :-1].flatten(), s=7, color=colour, alpha=0.6, linewidth=0, label=label)
    ax.plot([low, 1], [low, 1], color="black", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low, 1), aspect="equal")
    ax.set(xlabel="probability under the optimum", ylabel="probability under the model")
    ax.legend(frameon=False, loc="upper left", markerscale=2)


def _most_likely(ax: Axes, policy: Tensor, truth: Truth, prompt: int = 0) -> None:
    count = min(12, len(truth.language.responses))
    top = truth.best[prompt, :-1].topk(count).indices
    rows = torch.arange(count)
    ax.scatter(truth.best[prompt, top], rows, marker="|", s=160, color="black", label="optimum")
    for (label, colour), p in ((BEFORE, truth.reference), (AFTER, policy)):
        ax.scatter(p[prompt, top], rows, s=28, color=colour, linewidth=0, label=label)
    ax.set_yticks(rows.tolist(), [truth.language.responses[y] for y in top.tolist()], family="monospace")
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set(xlabel=f"probability of the optimum's {count} likeliest responses to {truth.language.prompts[prompt]!r}")
    ax.legend(frameon=False, loc="lower right")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m train.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="where the files go")
    ranks = min(2, torch.cuda.device_count()) or 2
    parser.add_argument("--ranks", type=int, default=ranks, help="processes: a GPU each, or all on the CPU")
    args = parser.parse_args(argv)
    if args.ranks < 1 or STEP % args.ranks:
        parser.error(f"--ranks: want a divisor of the step's {STEP} pairs, got {args.ranks}")
    if not LAUNCHER.is_file():
        parser.error(f"want DeepSpeed's launcher beside this Python, got no {LAUNCHER}")
    return args


def environment() -> dict[str, str]:
    """The virtual environment's programs come first: DeepSpeed compiles with its ninja."""
    made = {**os.environ, "PATH": os.pathsep.join([str(LAUNCHER.parent), os.environ.get("PATH", os.defpath)])}
    return made if torch.cuda.is_available() else {**made, "OMP_NUM_THREADS": "1"}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    torch.set_num_threads(1)  # the model is small: several threads wait for each other where cores are busy
    sys.exit(main())
