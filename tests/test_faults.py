"""What goes wrong in a week of training, done for real: signals, killed ranks, a full disk, a save that never ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from train_runs import (
    ROOT,
    command_line,
    environment,
    logs,
    losses,
    run,
    started,
    weights,
    write_model,
    write_pairs,
    write_zero,
)

from train import checkpoints

pytestmark = pytest.mark.timeout(900)
SHARED = {
    "objective": "simpo", "per_device_train_batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.1,
    "logging_steps": 1, "use_cpu": True, "disable_tqdm": True,
}  # fmt: skip
SCRIPT = ["train/run.py"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("faults")
    write_model(made / "model")
    write_pairs(made / "pairs.jsonl", 40)
    write_zero(made / "zero3.json")
    return made


def keys(folder: Path, name: str, **own: object) -> dict[str, object]:
    shared = {"model": str(folder / "model"), "train_data": str(folder / "pairs.jsonl")}
    return {**SHARED, **shared, "output_dir": str(folder / name), **own}


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def steps(output: Path) -> int:
    return len(losses(output)) if (output / "log.jsonl").is_file() else 0


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that run the script."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()[1:]
    rows = [line.split(None, 2) for line in found]
    return [int(pid) for pid, parent, args in rows if int(parent) == launcher.pid and "train/run.py" in args]


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """Sixty steps that nothing stopped, on two ranks."""
    two = keys(folder, "whole", deepspeed=str(folder / "zero3.json"), per_device_train_batch_size=2, max_steps=60)
    run([*started(2), *SCRIPT, *command_line(two)])
    return folder


def test_sigterm_saves_once_and_ends_with_zero_and_the_run_goes_on(folder):
    own = keys(folder, "terminated", max_steps=400)
    process = start([*started(1), *SCRIPT, *command_line(own)])
    wait_for(lambda: steps(folder / "terminated") >= 3)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    ((step, _),) = checkpoints.found(folder / "terminated")
    assert 3 <= step < 400 and f"stopped by a signal after step {step} of 400" in printed
    assert not checkpoints.finished(folder / "terminated")
    run([*started(1), *SCRIPT, *command_line({**own, "max_steps": step + 2, "resume_from_checkpoint": "auto"})])
    assert [row["step"] for row in logs(folder / "terminated") if "loss" in row] == list(range(1, step + 3))


@pytest.mark.slow
def test_sigterm_to_the_ranks_of_two(whole):
    two = {"deepspeed": str(whole / "zero3.json"), "per_device_train_batch_size": 2}
    own = keys(whole, "terminated two", max_steps=60, **two)
    process = start([*started(2), *SCRIPT, *command_line(own)])
    wait_for(lambda: steps(whole / "terminated two") >= 2)
    for pid in ranks_of(process):
        os.kill(pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 0, printed
    assert len(checkpoints.found(whole / "terminated two")) == 1
    run([*started(2), *SCRIPT, *command_line({**own, "resume_from_checkpoint": "auto"})])
    assert losses(whole / "terminated two") == losses(whole / "whole")
    assert same(whole / "terminated two", whole / "whole")


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_resumed_run_is_the_uninterrupted_one(whole):
    own = keys(whole, "killed", deepspeed=str(whole / "zero3.json"), per_device_train_batch_size=2, max_steps=60,
               save_steps=5)  # fmt: skip
    process = start([*started(2), *SCRIPT, *command_line(own)])
    wait_for(lambda: len(checkpoints.found(whole / "killed")) >= 1 and steps(whole / "killed") >= 7)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    begin = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - begin < 10
    run([*started(2), *SCRIPT, *command_line({**own, "resume_from_checkpoint": "auto"})])
    assert same(whole / "killed", whole / "whole")


@pytest.mark.slow
def test_resuming_at_other_ranks_by_the_universal_checkpoint(whole):
    own = keys(whole, "other ranks", deepspeed=str(whole / "zero3.json"), per_device_train_batch_size=2, max_steps=60,
               save_steps=30, seed=42)  # fmt: skip
    run([*started(2), *SCRIPT, *command_line(own)])
    assert same(whole / "other ranks", whole / "whole")
    shutil.rmtree(whole / "other ranks" / "checkpoint-60")
    one = {**own, "per_device_train_batch_size": 4, "resume_from_checkpoint": "auto"}
    printed = run([*started(1), *SCRIPT, *command_line(one)], ok=False)
    assert "ranks: 2 there, 1 here" in printed and "resume_at_other_ranks: true" in printed
    run([*started(1), *SCRIPT, *command_line({**one, "resume_at_other_ranks": True})])
    alone = keys(whole, "alone", max_steps=60)
    run([*started(1), *SCRIPT, *command_line(alone)])

    def apart(name: str) -> float:
        got, want = weights(whole / name), weights(whole / "whole")
        return max(float((got[key] - want[key]).abs().max()) for key in want)

    # AdamW amplifies rounding: one process that nothing stopped says by how much
    assert apart("other ranks") <= 2 * apart("alone") + 1e-6 < 1e-2
    again = losses(whole / "other ranks")[60:]
    assert again == pytest.approx(losses(whole / "whole")[30:], abs=1e-4)
    assert again[0] == pytest.approx(losses(whole / "whole")[30], abs=2e-6)


DYING = """
import errno, os, runpy, signal, sys
from train import checkpoints
settle, calls = checkpoints.settle, []

def dies(partial, final):
    calls.append(final)
    if len(calls) == 2:
        {how}
    settle(partial, final)

checkpoints.settle = dies
sys.argv = ["train/run.py", *sys.argv[1:]]
runpy.run_path("train/run.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", id="killed"),
        pytest.param("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", id="disk full", marks=pytest.mark.slow),
    ],
)
def test_a_save_that_does_not_end_leaves_the_previous_checkpoint_whole(folder, how, tmp_path):
    own = keys(folder, str(tmp_path / "out"), max_steps=6, save_steps=2)
    script = tmp_path / "dying.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + DYING.format(how=how))
    printed = run([sys.executable, str(script), *command_line(own)], ok=False)
    assert "killed" in how or "No space left on device" in printed or "SIGKILL" in how
    assert [step for step, _ in checkpoints.found(tmp_path / "out")] == [2]
    run([*started(1), *SCRIPT, *command_line({**own, "resume_from_checkpoint": "auto"})])
    run([*started(1), *SCRIPT, *command_line({**own, "output_dir": str(tmp_path / "whole")})])
    assert same(tmp_path / "out", tmp_path / "whole")


def test_two_runs_that_fill_one_reference_cache_at_once(folder):
    both = [
        start([*started(1), *SCRIPT, *command_line(
            keys(folder, f"cached {i}", objective="dpo", reference_cache=str(folder / "cache"), max_steps=3)
        )])
        for i in range(2)
    ]  # fmt: skip
    for process in both:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0, printed
    assert losses(folder / "cached 0") == losses(folder / "cached 1")
    assert [path.suffix for path in (folder / "cache").iterdir()] == [".safetensors"]
