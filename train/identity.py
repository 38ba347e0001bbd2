"""What must be the same for a resumed run to be the run that it resumes."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from train.corpora import Data
from train.launch import world
from train.settings import Settings
from train.stage import Stage

OPTIMIZER = ("optim", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type")
# of the policy, what does not change its numbers beyond rounding
_FREE = ("trust_remote_code", "gradient_checkpointing", "lora_merge", "backend", "workspace_mb", "tokenizer")


def identity_of(settings: Settings, stage: Stage, data: Data, reference: str) -> dict[str, Any]:
    model, training = settings.model, settings.training
    own = {name: value for name, value in dataclasses.asdict(model).items() if name not in _FREE}
    per_rank, micros = training.per_device_train_batch_size, training.gradient_accumulation_steps
    return {
        **own,
        "model_files": model_files(model.model),
        "objective": repr(stage.objective),
        "reference": reference,
        "reference_model": settings.objective.reference_model,
        "data": data.train.fingerprint,
        "anchors": None if data.anchors is None else data.anchors.fingerprint,
        "eval_fraction": settings.data.eval_fraction,
        "seed": training.seed,
        "ranks": world(),
        "optimizer": {name: getattr(training, name) for name in OPTIMIZER},
        "max_tokens": training.max_tokens,
        "micro_batches_a_step": None if training.max_tokens is None else micros * world(),
        "groups_a_step": per_rank * micros * world() if training.max_tokens is None else None,
        "anchors_a_step": settings.data.per_device_anchors * micros * world(),
        "deepspeed": training.deepspeed is not None,
    }


def model_files(model: str) -> str | None:
    """Of a folder, its configuration and the names and sizes of its weights; the hub's names have revisions."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin"):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        elif path.name == "config.json":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
