"""What the trainer's tests share: a tiny model and its data on disk, and the trainer started for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from toy.model import small_lm
from toy.tokenizer import tokenizer

ROOT = Path(__file__).parent.parent
ZERO3 = {
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,  # else a tiny model is never sharded
        "stage3_prefetch_bucket_size": 0,  # else all of it is gathered ahead of its use,
        "stage3_max_reuse_distance": 0,  # and kept
        "stage3_max_live_parameters": 0,
        "overlap_comm": False,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "steps_per_print": 1000000000,
}


def write_model(folder: Path, tied: bool = False, seed: int = 0) -> Path:
    words = tokenizer()
    model = small_lm(words, width=32, seed=seed)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def words(random: torch.Generator, longest: int) -> str:
    n = int(torch.randint(1, longest, (1,), generator=random))
    return "".join(chr(97 + int(x)) for x in torch.randint(0, 26, (n,), generator=random))


def write_pairs(path: Path, count: int, seed: int = 0, longest: int = 12) -> Path:
    """Plain rows of words of any length: no two sequences take the same number of tokens."""
    random = torch.Generator().manual_seed(seed)
    rows = [{key: words(random, longest) for key in ("prompt", "chosen", "rejected")} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_anchors(path: Path, count: int, seed: int = 7) -> Path:
    random = torch.Generator().manual_seed(seed)
    rows = [{"prompt": words(random, 8), "response": words(random, 8), "weight": 0.5 + i % 3} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_lists(path: Path, count: int, seed: int = 8) -> Path:
    """Three responses each, with their rewards."""
    random = torch.Generator().manual_seed(seed)
    rows = [
        {
            "prompt": words(random, 8),
            "responses": [words(random, 8) + "abc"[k] for k in range(3)],
            "rewards": torch.randn(3, generator=random).tolist(),
        }
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_zero(path: Path, stage: int = 3) -> Path:
    zero = ZERO3["zero_optimization"] if stage == 3 else {"stage": stage}
    path.write_text(json.dumps({**ZERO3, "zero_optimization": zero}))
    return path


def environment() -> dict[str, str]:
    own = Path(sys.executable).parent
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "PATH": f"{own}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu",
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # fmt: skip


def run(command: list[str], ok: bool = True) -> str:
    """-> everything it printed."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500
    )
    assert (done.returncode == 0) == ok, done.stdout[-6000:]
    return done.stdout


def started(ranks: int) -> list[str]:
    if ranks == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]


def run_cases(cases: list[list[str]], folder: Path, ranks: int) -> str:
    """In one set of ranks."""
    path = folder / f"cases-{ranks}.json"
    path.write_text(json.dumps(cases))
    return run([*started(ranks), "tests/train_worker.py", str(path)])


def command_line(keys: dict[str, object]) -> list[str]:
    return [
        part
        for key, value in keys.items()
        for part in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, Tensor]:
    return load_file(folder / name)


def logs(folder: Path) -> list[dict[str, float]]:
    """Of steps and evaluations."""
    return [row for row in _rows(folder) if "resident_mib" not in row]


def saves(folder: Path) -> list[dict[str, Any]]:
    return [row for row in _rows(folder) if "resident_mib" in row]


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in logs(folder) if "loss" in line]
