"""Folders of a run: whose they are, which checkpoint is whole, which may go.

A checkpoint is written under a name of its own and renamed when all of it is on the disk, so every `checkpoint-N` is
whole, whenever the power went.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
IDENTITY = "run.json"


def found(output: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the whole checkpoints, oldest first."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in named if match and path.is_dir())


def newest(output: Path) -> Path | None:
    steps = found(output)
    return steps[-1][1] if steps else None


def clear(partial: Path) -> None:
    """What a run that was stopped in the middle of a save has left behind."""
    if partial.exists():
        shutil.rmtree(partial)


def write_not_finite(output: Path, rank: int, step: int, ids: list[str]) -> Path:
    path = output / f"not_finite-rank{rank}.json"
    path.write_text(json.dumps({"after_step": step, "examples": ids}, indent=1) + "\n")
    return path


def settle(partial: Path, final: Path) -> None:
    """partial -> final, once every file is on the disk. A checkpoint of that step that is there already makes way."""
    for path in [*partial.rglob("*"), partial]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    handle = os.open(final.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def rotate(output: Path, keep: int | None, best: Path | None) -> None:
    """The last `keep` stay, and the best."""
    if keep is None or keep <= 0:
        return
    for _, path in found(output)[:-keep]:
        if best is None or path.resolve() != best.resolve():
            shutil.rmtree(path)


def set_later_aside(resume: Path) -> list[Path]:
    """Checkpoints after the one that a run resumes from are of a branch that it leaves; -> where they are now."""
    step = int(resume.name.split("-")[1])
    moved = []
    for other, path in found(resume.parent):
        if other > step:
            moved.append(path.with_name(f"superseded-{time.strftime('%Y%m%d-%H%M%S')}-{path.name}"))
            os.replace(path, moved[-1])
    return moved


def has_optimizer(checkpoint: Path) -> bool:
    """DeepSpeed's state, or torch's."""
    return any(checkpoint.glob("global_step*")) or (checkpoint / "optimizer.pt").is_file()


def finished(output: Path) -> bool:
    """Whether a final model is there."""
    return any((output / name).exists() for name in ("config.json", "adapter_config.json", "trainer_state.json"))


def claim(output: Path, *, resume: Path | None, auto: bool, overwrite: bool) -> Path | None:
    """Raises FileExistsError where another run lives; `overwrite` moves that run aside, -> where to. A run goes on in
    the folder of its checkpoint; with `auto` and no checkpoint yet, in one that has no final model."""
    own = resume is not None and resume.resolve().parent == output.resolve()
    begun = output.is_dir() and ((output / "settings.yaml").exists() or bool(found(output)))
    taken = output.is_dir() and (finished(output) or (begun and not auto))
    if own or not taken:
        output.mkdir(parents=True, exist_ok=True)
        return None
    if not overwrite:
        raise FileExistsError(
            f"output_dir: want a folder without a run in it, got {output}; resume_from_checkpoint: auto goes on from "
            "that run's newest checkpoint, if it has one; overwrite_output_dir: true moves the run aside"
        )
    aside = output.with_name(f"{output.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    os.replace(output, aside)
    output.mkdir(parents=True)
    return aside


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    (folder / IDENTITY).write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n")


def differences(folder: Path, identity: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a checkpoint's run was told otherwise than this one: key -> there, here."""
    path = folder / IDENTITY
    if not path.is_file():
        raise ValueError(f"resume_from_checkpoint: want a checkpoint of this trainer (with {IDENTITY}), got {folder}")
    theirs = json.loads(path.read_text())
    ours = json.loads(json.dumps(identity))
    names = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    return {name: (theirs.get(name), ours.get(name)) for name in names}


def told(different: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key}: {there!r} there, {here!r} here" for key, (there, here) in different.items())
