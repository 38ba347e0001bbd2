"""Every family of models trained a step by the trainer: the weights are those of a step on HF's own logits."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from test_head import CONFIGS, EXPERTS, small
from torch import Tensor, nn
from train_runs import command_line, write_pairs
from transformers import AutoModelForCausalLM

from expo_kernels import reference
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective
from toy.tokenizer import tokenizer
from train import build
from train.arguments import parse
from train.layouts import pad_sequences

RATE, ROUTER = 0.5, 0.3


def logged_step(model: nn.Module, folder: Path, **own: object) -> float:
    """One step of SGD on all pairs; -> its loss."""
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    keys = {
        "model": str(folder / "model"), "train_data": str(folder / "pairs.jsonl"), "output_dir": str(folder / "out"),
        "objective": "simpo", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1,
        "optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "use_cpu": True,
        "logging_steps": 1, "disable_tqdm": True, **own,
    }  # fmt: skip
    build.run(parse(command_line(keys)))
    lines = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
    return next(line["loss"] for line in lines if "loss" in line)


def by_its_own_logits(model: nn.Module, path: Path) -> Tensor:
    """The loss of all pairs, one of a forward of HF's code each."""
    words, objective, losses = tokenizer(), make_objective("simpo"), []
    for row in map(json.loads, path.read_text().splitlines()):
        prompt = words(row["prompt"], add_special_tokens=False).input_ids
        sides = [words(row[key], add_special_tokens=False).input_ids for key in ("chosen", "rejected")]
        ids, mask, labels = pad_sequences([(prompt, [*side, words.eos_token_id]) for side in sides], 0)
        logits = model(input_ids=ids, attention_mask=mask).logits
        logp = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        losses.append(reference.objective_loss(logp.mul(labels != -100).sum(1), from_padded(labels), objective))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step(name, tmp_path):
    path = write_pairs(tmp_path / "pairs.jsonl", 4)
    model = small(copy.deepcopy(CONFIGS[name]))
    attention = "eager" if name == "gemma2" else "sdpa"  # sdpa has no soft cap
    loss = logged_step(model, tmp_path, attn_implementation=attention)
    want = by_its_own_logits(model, path)
    want.backward()
    assert loss == pytest.approx(want.item(), rel=1e-5)
    trained = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    for key, before in model.named_parameters():
        step = RATE * before.grad
        assert (before - step - trained[key]).norm() <= 1e-4 * step.norm() + 2e-7 * before.norm(), key
        assert not torch.equal(before, trained[key]) or not step.any(), key


@pytest.mark.parametrize("name", EXPERTS)
def test_a_step_of_a_mixture_of_experts_with_its_router_loss(name, tmp_path):
    """Two micro-batches of two pairs: the router's loss is the mean of theirs, so only its part is looked at."""
    write_pairs(tmp_path / "pairs.jsonl", 4)
    model = small(copy.deepcopy(EXPERTS[name]))
    for folder, weight in (("without", 0.0), ("with", ROUTER)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pairs.jsonl").write_text((tmp_path / "pairs.jsonl").read_text())
        logged_step(model, tmp_path / folder, router_aux_loss_coef=weight)
    want = by_its_own_logits(model, tmp_path / "pairs.jsonl")
    want.backward()
    plain, balanced = (
        dict(AutoModelForCausalLM.from_pretrained(tmp_path / folder / "out").named_parameters())
        for folder in ("without", "with")
    )
    for key, before in model.named_parameters():
        step = RATE * before.grad
        assert (before - step - plain[key]).norm() <= 1e-4 * step.norm() + 2e-7 * before.norm(), key
    routers = [key for key in plain if "gate.weight" in key and "experts" not in key]
    assert routers and all((plain[key] - balanced[key]).norm() > 1e-6 for key in routers)


def test_a_certified_gradient_of_a_new_model_is_the_exact_one_and_says_so(tmp_path):
    """Its softmax is flat, so every block keeps too much."""
    write_pairs(tmp_path / "pairs.jsonl", 4)
    logged_step(small(copy.deepcopy(next(iter(CONFIGS.values())))), tmp_path, sparsity="certified")
    lines = map(json.loads, (tmp_path / "out" / "log.jsonl").read_text().splitlines())
    log = next(line for line in lines if "loss" in line)
    assert log["sparsity/kept"] == log["sparsity/exact"] == 1 and log["sparsity/dropped_mean"] == 0


def test_a_sparse_gradient_changes_the_step_and_is_logged(tmp_path):
    """The loss is the exact one; the head's step is another; what was left out is in the log."""
    write_pairs(tmp_path / "pairs.jsonl", 4)
    rule = {"sparsity": "unbiased", "sparsity_theta": 3.0}
    name, made = next(iter(CONFIGS)), {}
    for folder, keys in (("exact", {}), ("sparse", rule), ("again", rule)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pairs.jsonl").write_text((tmp_path / "pairs.jsonl").read_text())
        loss = logged_step(small(copy.deepcopy(CONFIGS[name])), tmp_path / folder, **keys)
        lines = (tmp_path / folder / "out" / "log.jsonl").read_text().splitlines()
        head = AutoModelForCausalLM.from_pretrained(tmp_path / folder / "out").get_output_embeddings().weight
        made[folder] = loss, next(line for line in map(json.loads, lines) if "loss" in line), head
    assert made["exact"][0] == made["sparse"][0] and "sparsity/kept" not in made["exact"][1]
    log = made["sparse"][1]
    assert 0 < log["sparsity/kept"] < 1 and 0 < log["sparsity/dropped_mean"] < 1 and log["sparsity/d_weight"] > 0
    assert not torch.equal(made["exact"][2], made["sparse"][2])
    assert torch.equal(made["again"][2], made["sparse"][2]), "the same draws"
