"""A soak of the trainer: a thousand steps of the demo's training, undisturbed and then killed ten times on the way.

python -m tools.soak [--steps 1000] [--every 50] [--logged 10] [--kills 10] [--seed 0] [--ranks 2] [--out runs/soak]

Both runs evaluate and save; a kill is SIGKILL to one rank, at a moment drawn by the seed, every third one in the middle
of a save. Exit code 0 only where the killed run lost nothing (its newest checkpoint was always whole and where it went
on, every logged loss and evaluation is the undisturbed run's), both end with the same bytes of weights, and the ranks'
memory does not grow: what malloc has handed out, and what is resident.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from tools.slope import Slope, floor_slope
from train import checkpoints, demo

SETTLED = 200  # steps after which memory has to stand still
KEPT = {"allocated_mib": 32, "resident_mib": 1024}  # bytes a step: malloc's smallest block; and space between blocks
LINE = 800  # bytes of a line of its log, which the Trainer keeps
SHORTEST = 5  # cycles of saves and evaluations that a slope wants after that
# Arrow takes from malloc what its own pool would hold in pages of 2 MiB, a step in what is resident each (docs/log.md)
ARROW = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
STUCK, ENDED = 300.0, 60.0  # seconds: without a step; for a launcher to end after one of its ranks was killed


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    demo.write_files(out)
    for _ in _running(_command(out, "whole", args), out / "whole"):
        pass
    problems = _memory(out / "whole", args)
    if args.kills:
        disturbed(_command(out, "killed", args), out / "killed", args)
        problems += compare(out / "whole", out / "killed", args.steps)
    for problem in problems:
        print(f"tools.soak: {problem}")
    if args.kills and not problems:
        print(
            f"nothing was lost in {args.kills} kills: {args.steps} logged steps, evaluations and the weights are equal"
        )
    return 1 if problems else 0


# the runs


def disturbed(command: list[str], output: Path, args: argparse.Namespace) -> None:
    chance = random.Random(args.seed)
    moments = sorted(chance.sample(range(args.every // 2, args.steps), args.kills))
    for number, moment in enumerate(moments):
        saving = number % 3 == 2
        for launcher in _running(command, output):
            if step(output) >= max(1, moment - args.logged) and (not saving or _saves(output)):
                time.sleep(chance.random() * (0.05 if saving else 1.0))
                _kill(launcher, chance, output, saving)
                break
    for _ in _running(command, output):
        pass
    if not checkpoints.finished(output):
        raise RuntimeError(f"tools.soak: want the last run to end with a model in {output}, got none")


def _kill(launcher: psutil.Popen, chance: random.Random, output: Path, saving: bool) -> None:
    """One rank; the launcher has to end the others by itself, with an error, and nobody may stay behind."""
    before, family = [n for n, _ in checkpoints.found(output)], launcher.children(recursive=True)
    victims = ranks(launcher)
    if not victims:
        raise RuntimeError("tools.soak: want ranks to kill, got none: the run had ended")
    chance.choice(victims).kill()
    code = launcher.wait(timeout=ENDED)
    _, left = psutil.wait_procs(family, timeout=ENDED)
    after = [n for n, _ in checkpoints.found(output)]
    if code == 0 or left or (before and (not after or after[-1] < before[-1])):
        raise RuntimeError(
            f"tools.soak: want a killed run to end with an error, with all its processes, and its checkpoints {before} "
            f"as they were; got code {code}, {len(left)} processes left, {after}"
        )
    what = "in a save" if saving else "between saves"
    print(
        f"killed a rank near step {step(output)}, {what}; newest checkpoint: {after[-1] if after else None}", flush=True
    )


def _running(command: list[str], output: Path) -> Iterator[psutil.Popen]:
    """The launcher again and again while it runs; all its processes are ended with us, whatever happens."""
    env = {**demo.environment(), **ARROW}
    with (output.parent / f"{output.name}.txt").open("a") as file:
        launcher = psutil.Popen(command, cwd=demo.ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)
        seen, since = -1, time.monotonic()
        try:
            while launcher.poll() is None:
                yield launcher
                time.sleep(0.02)
                if step(output) != seen:
                    seen, since = step(output), time.monotonic()
                if time.monotonic() - since > STUCK:
                    raise RuntimeError(f"tools.soak: no step for {STUCK:.0f} s after step {seen}; see {file.name}")
        finally:
            for process in [*(launcher.children(recursive=True) if launcher.poll() is None else []), launcher]:
                process.kill() if process.is_running() else None
            launcher.wait()
    if launcher.returncode:
        raise RuntimeError(f"tools.soak: want exit code 0, got {launcher.returncode}; see {file.name}")


# what is looked at


def ranks(launcher: psutil.Popen) -> list[psutil.Process]:
    """The launcher's processes that run the script, in the order of their start."""
    found = []
    for process in launcher.children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if "train/run.py" in words and not any(word.startswith("deepspeed.launcher") for word in words):
            found.append(process)
    return sorted(found, key=lambda process: process.pid)


def step(output: Path) -> int:
    """The last one logged."""
    lines = logged(output)
    return max(lines) if lines else 0


def logged(output: Path, mark: str = "loss") -> dict[int, dict[str, Any]]:
    """Step -> its line of the log that has the mark; steps made again after a kill must say the same."""
    path = output / "log.jsonl"
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        row = json.loads(line)
        if mark in row:
            if row["step"] in rows and rows[row["step"]][mark] != row[mark]:
                raise RuntimeError(f"tools.soak: {path}: step {row['step']} was made twice and differs")
            rows[row["step"]] = row
    return rows


def compare(whole: Path, killed: Path, steps: int) -> list[str]:
    """What the killed run has otherwise than the undisturbed one."""
    problems = []
    for mark in ("loss", "grad_norm", "eval_loss"):
        want = {n: row[mark] for n, row in logged(whole, mark).items()}
        got = {n: row[mark] for n, row in logged(killed, mark).items()}
        missing, other = sorted(want.keys() - got), sorted(n for n in want.keys() & got if want[n] != got[n])
        if not want or missing or other:
            problems.append(f"{mark}: {len(want)} lines, of which lost: {missing}, different: {other}")
    if step(whole) != steps:
        problems.append(f"want {steps} steps, got {step(whole)}")
    if (whole / "model.safetensors").read_bytes() != (killed / "model.safetensors").read_bytes():
        problems.append("the weights differ")
    return problems


def _memory(whole: Path, args: argparse.Namespace) -> list[str]:
    """Prints a line for each account of each rank; -> those that grow."""
    problems = []
    for account, most in KEPT.items():
        for rank, slope in enumerate(slopes(whole, account, args)):
            said = f"rank {rank}: {account} {slope.mean / 2**20:.1f}, slope {slope.value:+.1f} bytes a step, "
            print(said + f"95 % interval {slope.low:+.1f} to {slope.high:+.1f}", flush=True)
            if slope.low > most + LINE / args.logged:
                problems.append(f"rank {rank}: {account} grows by at least {slope.low:.1f} bytes a step")
    return problems


def slopes(whole: Path, account: str, args: argparse.Namespace) -> list[Slope]:
    """Bytes a step of each rank, after it has settled: of the least after the saves of each cycle of saves and
    evaluations, as the trainer's log has it."""
    first, cycle = min(SETTLED, args.steps // 5), 2 * args.every
    late = [(n, row[account]) for n, row in logged(whole, account).items() if n >= first]
    width = min(cycle, (args.steps - first) / SHORTEST)
    return [floor_slope([(n, held[rank] * 2**20) for n, held in late], width) for rank in range(args.ranks)]


def _saves(output: Path) -> bool:
    return (output / checkpoints.PARTIAL).is_dir()


def _command(out: Path, name: str, args: argparse.Namespace) -> list[str]:
    own = {
        "max_steps": args.steps, "save_steps": args.every, "eval_steps": 2 * args.every, "logging_steps": args.logged,
        "save_total_limit": 2, "overwrite_output_dir": "false",
        "resume_from_checkpoint": "auto", "report_to": "[jsonl]",
    }  # fmt: skip
    return [
        *demo.command(out, args.ranks, name),
        *(part for key, value in own.items() for part in (f"--{key}", str(value))),
    ]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tools.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints; evaluation every second one")
    parser.add_argument("--logged", type=int, default=10, help="steps between two lines of the log")
    parser.add_argument("--kills", type=int, default=10, help="0: only the undisturbed run, for its memory")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the ranks that are killed")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path, default=demo.ROOT / "runs" / "soak", help="emptied first")
    args = parser.parse_args(argv)
    if args.logged < 1 or args.steps % args.every or (2 * args.every) % args.logged:
        parser.error(
            "want --steps a multiple of --every, and twice that of --logged, which is at least 1; "
            f"got {args.steps}, {args.every} and {args.logged}"
        )
    if args.steps < 4 * args.every:
        parser.error(f"--steps: want at least four times --every for a slope of memory, got {args.steps}")
    if not 0 <= args.kills <= args.steps - args.every // 2:
        parser.error(f"--kills: want from 0 to {args.steps - args.every // 2}, got {args.kills}")
    return args


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
