"""The same training as TRL's DPOTrainer: the same rows, order and optimizer make the same curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import pytest
from train_runs import command_line, logs, run, write_model, write_pairs

from train.order import StepOrder

STEPS, PAIRS, SEED = 20, 4, 3
SHARED = {
    "per_device_train_batch_size": PAIRS, "learning_rate": 1e-3, "lr_scheduler_type": "linear", "weight_decay": 0.1,
    "max_grad_norm": 1.0, "max_length": 24, "seed": SEED,
}  # fmt: skip


def in_our_order(path: Path) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [rows[i] for batch in StepOrder(len(rows), per_rank=PAIRS, seed=SEED) for i in batch]


def trl_logs(folder: Path, rows: list[dict[str, str]]) -> list[dict[str, float]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    own = {key: value for key, value in SHARED.items() if key != "max_length"}
    config = DPOConfig(
        **own, max_length=SHARED["max_length"], output_dir=str(folder / "trl"), beta=0.2, num_train_epochs=1,
        train_sampling_strategy="sequential", logging_steps=1, bf16=False, gradient_checkpointing=False, use_cpu=True,
        report_to="none", save_strategy="no", disable_dropout=True, disable_tqdm=True,
    )  # fmt: skip
    model, words = (kind.from_pretrained(folder / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    made = datasets.Dataset.from_list(rows)
    trainer = DPOTrainer(model=model, args=config, processing_class=words, train_dataset=made)
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def test_twenty_steps_of_dpo_are_trls(tmp_path):
    write_model(tmp_path / "model")
    pairs = write_pairs(tmp_path / "pairs.jsonl", STEPS * PAIRS, longest=20)  # some longer than max_length
    keys = {
        **SHARED, "model": str(tmp_path / "model"), "train_data": str(pairs), "objective": "dpo",
        "objective_args": {"beta": 0.2}, "output_dir": str(tmp_path / "ours"), "logging_steps": 1, "use_cpu": True,
        "disable_tqdm": True, "token_stats": True,
    }  # fmt: skip
    printed = run([sys.executable, "train/run.py", *command_line(keys)])
    assert "truncated" in printed
    ours = [row for row in logs(tmp_path / "ours") if "loss" in row]
    theirs = trl_logs(tmp_path, in_our_order(pairs))
    assert len(ours) == len(theirs) == STEPS
    assert max(row["loss"] for row in ours) - min(row["loss"] for row in ours) > 0.03
    for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"):
        for own, other in zip(ours, theirs, strict=True):
            assert own[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4), name
    for name in ("rewards/accuracies", "rewards/margins", "num_tokens", "learning_rate"):
        for own, other in zip(ours, theirs, strict=True):
            assert own[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
