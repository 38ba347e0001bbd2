"""What a run leaves behind: a model that from_pretrained loads, whole and unsharded."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from train.checkpoints import IDENTITY, finished
from train.launch import barrier, rank, say
from train.settings import Settings
from train.trainer import PreferenceTrainer

MODEL_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt")
NOT_MODEL = ("trainer_state.json", IDENTITY)


def save_final(trainer: PreferenceTrainer, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> None:
    """Into output_dir; an adapter as an adapter, and merged beside it where that was asked for."""
    output = Path(settings.output.output_dir)
    trainer.save_model(str(output))
    barrier()
    if settings.model.lora_merge:
        if rank() == 0:
            _merge(settings, output, tokenizer)
        barrier()
    say(f"model: {output / 'merged' if settings.model.lora_merge else output}")


def copy_final(checkpoint: Path, output: Path) -> None:
    """A checkpoint's model as the final one, where a run was stopped between the two."""
    if rank() == 0 and not finished(output):
        for path in checkpoint.iterdir():
            if path.is_file() and path.suffix in MODEL_FILES and path.name not in NOT_MODEL:
                shutil.copy2(path, output / path.name)
        say(f"model: {output}")
    barrier()


def _merge(settings: Settings, output: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """On the host: the base model as it is on disk, plus the adapter that was just saved."""
    from peft import PeftModel
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # else the base model would be loaded in shards
    base = AutoModelForCausalLM.from_pretrained(
        settings.model.model, revision=settings.model.model_revision,
        trust_remote_code=settings.model.trust_remote_code, dtype=torch.bfloat16 if settings.model.bf16 else "auto",
    )  # fmt: skip
    merged = PeftModel.from_pretrained(base, str(output)).merge_and_unload()
    merged.save_pretrained(str(output / "merged"))
    tokenizer.save_pretrained(str(output / "merged"))
