"""Items 6 and 7 of the list: whole training steps on this card: python -m benchmarks.gpu.step (make gpu-step)

6  an 8B Llama shape of random weights, with a naive head and with the fused one: step time, peak, the longest pair
7  the trainer against TRL's DPOTrainer: one model, the same data and objective (benchmarks.bench_step)

`--items 6 --only ours`, `--items 6 --only naive` and `--items 7` each take minutes, for who has a machine no longer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import command
from benchmarks.parts import Part, not_installed, python

BUDGET = 3600.0
HEADS = {"ours": 420.0, "naive": 240.0}  # seconds; the fused head's longest pair takes the longest steps
TRAINER = ("transformers", "trl", "accelerate", "datasets", "tokenizers")
COMPARED = (
    "--model", "llama3.2-1b", "--vocabulary", "128256", "--dtype", "bf16", "--longest", "2048", "--pairs", "4",
    "--steps", "2", "--rounds", "5",
)  # fmt: skip


def build(folder: Path, facts: dict[str, Any]) -> list[Part]:
    return [*(_whole(head, seconds, folder) for head, seconds in HEADS.items()), _trainer(folder)]


def _whole(head: str, seconds: float, folder: Path) -> Part:
    name, save = f"whole step: {head}", folder / f"whole-step-{head}.jsonl"
    if missing := not_installed("transformers"):
        return Part(name=name, item=6, missing=missing)
    return Part(
        name=name, item=6, command=python("-m", "benchmarks.gpu.whole_step", "--head", head, "--save", save),
        seconds=seconds, save=save, environment={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    )  # fmt: skip


def _trainer(folder: Path) -> Part:
    name, save = "trainer against TRL", folder / "bench-step.jsonl"
    if missing := not_installed(*TRAINER):
        return Part(name=name, item=7, missing=missing)
    arguments = python("-m", "benchmarks.bench_step", *COMPARED, "--save", save)
    return Part(name=name, item=7, command=arguments, seconds=540.0, save=save)


def main(arguments: list[str] | None = None) -> int:
    return command.main("step", __doc__, build, BUDGET, arguments)


if __name__ == "__main__":
    sys.exit(main())
