"""Whether a checkpoint may be resumed from by this run, and in what form DeepSpeed then reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from train.checkpoints import differences, told
from train.launch import barrier, rank, say
from train.settings import Settings


def check(checkpoint: Path, identity: dict[str, Any], settings: Settings) -> bool:
    """-> whether the checkpoint is read in the universal format. Raises ValueError where the run is another, unless the
    settings allow it."""
    different = differences(checkpoint, identity)
    ranks = different.pop("ranks", None)
    own = settings.output
    if "optimizer" in different:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is of another run: {told(different)}; the optimizer's state comes "
            "with its settings, which cannot be changed on the way"
        )
    if different and not own.resume_changed:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is of another run: {told(different)} (resume_changed: true "
            "allows it)"
        )
    if different:
        say(f"resuming {checkpoint} with changes: {told(different)}")
    if ranks is None or settings.training.deepspeed is None:
        return False
    if not own.resume_at_other_ranks:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is of another run: {told({'ranks': ranks})}; DeepSpeed reads it at "
            "other ranks once converted: resume_at_other_ranks: true"
        )
    return True


def convert(checkpoint: Path) -> None:
    """DeepSpeed's own conversion, beside what is there; by the first rank, once."""
    if rank() == 0 and not (checkpoint / "latest_universal").is_file():
        tag = (checkpoint / "latest").read_text().strip()
        say(f"converting {checkpoint / tag} for another number of ranks")
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(checkpoint / tag), "--output_folder", str(checkpoint / f"{tag}_universal")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(f"resume_at_other_ranks: DeepSpeed's conversion failed:\n{done.stdout[-3000:]}")
        (checkpoint / "latest_universal").write_text(f"{tag}_universal")
    barrier()


def mend(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """What DeepSpeed 0.19.8 leaves wrong after reading a universal checkpoint into torch's optimizer: one tensor of
    steps for all parameters, which each of them counts up, and the first group's weight decay for all groups."""
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
    for i, group in enumerate(optimizer.param_groups):
        group["weight_decay"] = weight_decay if i == 0 else 0.0  # transformers' second group is not decayed


def deepspeed_config(path: str, universal: bool) -> str | dict[str, Any]:
    """The file, or what is in it and that the checkpoint is universal."""
    if not universal:
        return path
    config: dict[str, Any] = json.loads(Path(path).read_text())
    config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}
    return config
