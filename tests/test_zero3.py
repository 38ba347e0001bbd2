"""ZeRO-3 on two ranks is the same training as one process: one global batch, whatever it is split over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from train_runs import (
    command_line,
    logs,
    losses,
    run_cases,
    saves,
    weights,
    write_anchors,
    write_lists,
    write_model,
    write_pairs,
    write_zero,
)

SGD = {"optim": "sgd", "learning_rate": 0.1}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3}
# 13 pairs in micro-batches of 4 over both ranks, two to a step: four micro-batches, the last with one pair, so that one
# rank has none
SHARED = {
    "num_train_epochs": 1, "gradient_accumulation_steps": 2, "lr_scheduler_type": "constant", "max_grad_norm": 0,
    "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "max_length": 64,
}  # fmt: skip
CASES: dict[str, dict[str, object]] = {
    "untied": {**SGD, "objective": "dpo"},
    "tied, checkpointing": {**SGD, "objective": "dpo", "model": "tied", "gradient_checkpointing": True},
    "adamw, clipped": {**ADAM, "objective": "dpo", "model": "tied", "max_grad_norm": 0.5},
    "adapter": {**SGD, "objective": "ipo", "lora_r": 4, "learning_rate": 0.01},
    "stage 0": {**SGD, "objective": "dpo", "zero": 0},
    "stage 2": {**SGD, "objective": "dpo", "zero": 2},
    "adapter and a head of its own": {**SGD, "objective": "dpo", "lora_r": 2, "lora_modules_to_save": ["lm_head"]},
    "reference engine": {**SGD, "objective": "expo_reg", "objective_args": {"lam": 0.3}, "reference": "engine"},
    "anchors": {
        **SGD, "objective": "expo_comp", "objective_args": {"lam": 0.2, "samples": "anchors"}, "per_device_anchors": 2,
    },
    "two means": {**SGD, "objective": "cpo"},
    "tokens": {**SGD, "objective": "sft"},
    "unpaired": {**SGD, "objective": "kto", "learning_rate": 1.0},
    "lists": {**SGD, "objective": "adpo", "learning_rate": 1.0},
    "packed": {**SGD, "objective": "dpo", "packing": "auto"},
    "packed, prompts shared": {
        **SGD, "objective": "expo_comp", "objective_args": {"lam": 0.2, "samples": "anchors"}, "per_device_anchors": 2,
        "packing": "mask", "shared_prompts": True, "model": "tied", "gradient_checkpointing": True,
    },
    "packed, unpaired": {**SGD, "objective": "kto", "learning_rate": 1.0, "packing": "auto"},
    "so many tokens": {**SGD, "objective": "dpo", "packing": "auto", "max_tokens": 96},
    "token weights": {**SGD, "objective": "lddpo", "objective_args": {"alpha": 0.5}},
}  # fmt: skip
# those of make test; make test-all has the others
SHORT = (
    "untied", "tied, checkpointing", "adapter", "stage 2", "anchors", "unpaired", "packed", "packed, prompts shared",
    "so many tokens",
)  # fmt: skip
DATA = {"sft": "sft.jsonl", "adpo": "lists.jsonl"}  # of objectives that do not read pairs
RESUMED = "resumed"
pytestmark = pytest.mark.timeout(900)


def named(names) -> list:
    return [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.slow]) for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory, request) -> Path:
    """Both runs of every case that a test asks for, and a run of three epochs that is resumed in its second."""
    folder = tmp_path_factory.mktemp("zero3")
    asked = {getattr(item, "callspec", None) and item.callspec.params.get("name") for item in request.session.items}
    cases = {name: case for name, case in CASES.items() if name in asked or name in SHORT}
    for name, tied in (("untied", False), ("tied", True)):
        write_model(folder / name, tied)
    write_pairs(folder / "pairs.jsonl", 13)
    write_pairs(folder / "held_out.jsonl", 5, seed=1)
    write_anchors(folder / "anchors.jsonl", 9)
    (folder / "sft.jsonl").write_text(
        "".join(
            json.dumps({"prompt": row["prompt"], "completion": row["chosen"]}) + "\n"
            for row in map(json.loads, (folder / "pairs.jsonl").read_text().splitlines())
        )
    )
    write_lists(folder / "lists.jsonl", 9)
    for stage in (0, 2, 3):
        write_zero(folder / f"zero{stage}.json", stage)
    # two steps an epoch: the third is in the middle of the second
    whole = {**SHARED, **ADAM, "objective": "dpo", "num_train_epochs": 3, "save_steps": 3}
    two = [keys(folder, name, case, 2) for name, case in cases.items()] + [keys(folder, RESUMED, whole, 2)]
    run_cases(list(map(command_line, two)), folder, 2)
    run_cases([command_line(keys(folder, name, case, 1)) for name, case in cases.items()], folder, 1)
    without = keys(folder, "without deepspeed", CASES["untied"], 2)
    del without["deepspeed"]
    run_cases([command_line(without)], folder, 2)
    first = folder / f"{RESUMED}-2"
    shutil.copytree(first, folder / "whole")
    shutil.rmtree(first / "checkpoint-6")
    (first / "log.jsonl").unlink()
    mixed = keys(folder, "bf16", CASES["adapter and a head of its own"] | {"bf16": True}, 2)
    run_cases([command_line({**two[-1], "resume_from_checkpoint": "auto"}), command_line(mixed)], folder, 2)
    return folder


def keys(folder: Path, name: str, case: dict[str, object], ranks: int) -> dict[str, object]:
    own = {**SHARED, **case, "output_dir": str(folder / f"{name}-{ranks}")}
    own["model"] = str(folder / str(case.get("model", "untied")))
    own["train_data"] = str(folder / DATA.get(str(case["objective"]), "pairs.jsonl"))
    if case["objective"] not in DATA:
        own["eval_data"] = str(folder / "held_out.jsonl")
    own["per_device_train_batch_size"] = own["per_device_eval_batch_size"] = 4 // ranks
    if "per_device_anchors" in case:
        own |= {"anchor_data": str(folder / "anchors.jsonl"), "per_device_anchors": 4 // ranks}
    if "max_tokens" in case:
        del own["per_device_train_batch_size"]
        own["gradient_accumulation_steps"] = 4 // ranks
    if ranks > 1:
        own["deepspeed"] = str(folder / f"zero{case.get('zero', 3)}.json")
    own.pop("zero", None)
    return own


@pytest.mark.parametrize("name", named(CASES))
def test_two_ranks_equal_one_process(made, name):
    two, one = made / f"{name}-2", made / f"{name}-1"
    file = "adapter_model.safetensors" if "lora_r" in CASES[name] else "model.safetensors"
    got, want = weights(two, file), weights(one, file)
    assert got.keys() == want.keys()
    limit = 1e-6 if CASES[name]["optim"] == "sgd" else 1e-4
    for key in want:
        assert float((got[key] - want[key]).abs().max()) <= limit, key
    assert losses(two) == pytest.approx(losses(one), rel=1e-6, abs=2e-6)
    assert len(losses(one)) == (4 if CASES[name]["objective"] == "kto" else 2)


def test_two_ranks_without_deepspeed_equal_one_process(made):
    got, want = weights(made / "without deepspeed-2"), weights(made / "untied-1")
    assert max(float((got[key] - want[key]).abs().max()) for key in want) <= 1e-6


@pytest.mark.parametrize(
    "packed, name", [("packed", "untied"), pytest.param("packed, unpaired", "unpaired", marks=pytest.mark.slow)]
)
def test_a_packed_run_is_the_padded_one(made, packed, name):
    got, want = weights(made / f"{packed}-1"), weights(made / f"{name}-1")
    assert max(float((got[key] - want[key]).abs().max()) for key in want) <= 1e-6
    assert losses(made / f"{packed}-1") == pytest.approx(losses(made / f"{name}-1"), rel=1e-6, abs=2e-6)


@pytest.mark.parametrize("name", named(CASES))
def test_training_has_moved_the_weights(made, name):
    file = "adapter_model.safetensors" if "lora_r" in CASES[name] else "model.safetensors"
    got = weights(made / f"{name}-2", file)
    if "lora_r" in CASES[name]:
        assert all(float(value.abs().max()) > 1e-7 for key, value in got.items() if "lora_B" in key)
    else:
        start = weights(made / str(CASES[name].get("model", "untied")))
        assert max(float((got[key] - start[key]).abs().max()) for key in got) > 1e-3


@pytest.mark.parametrize("name", named(name for name in CASES if CASES[name]["objective"] not in DATA))
def test_evaluation_counts_every_example_once(made, name):
    got, want = ({k: v for k, v in logs(made / f"{name}-{ranks}")[-1].items() if k[:5] == "eval_"} for ranks in (2, 1))
    for key in ("eval_loss", "eval_logps/chosen", "eval_rewards/chosen", "eval_rewards/margins", "eval_num_tokens"):
        assert got[key] == pytest.approx(want[key], rel=2e-5, abs=1e-6), key


def test_what_each_rank_holds_is_logged_with_every_save(made):
    rows = saves(made / "whole")
    assert [row.pop("step") for row in rows] == [3, 6]
    for row in rows:
        assert row.keys() in ({"resident_mib"}, {"resident_mib", "allocated_mib"})
        assert all(len(ranks) == 2 and min(ranks) > 50 for ranks in row.values()) and max(row["resident_mib"]) < 5000


def test_epochs_are_different_orders(made):
    whole = losses(made / "whole")
    assert whole[0] == pytest.approx(0.693147, abs=1e-5) and len({round(loss, 6) for loss in whole}) == 6
    first = [logs(made / "whole")[i]["logps/chosen"] for i in (0, 2, 4)]
    assert len({round(value, 1) for value in first}) == 3


@pytest.mark.parametrize("name", named(name for name in CASES if "zero" not in CASES[name]))
def test_the_head_is_sharded_while_the_body_runs(made, name):
    tied = CASES[name].get("model") == "tied"
    for rank in (0, 1):
        seen = json.loads((made / f"{name}-2" / f"watched-{rank}.json").read_text())
        # the embedding at the bottom is gathered for itself, and given back before the last layer
        assert seen == ["NOT_AVAILABLE"], (tied, seen)


def test_the_model_loads_as_any_other(made):
    from transformers import AutoModelForCausalLM

    for name in ("untied", "tied, checkpointing"):
        model = AutoModelForCausalLM.from_pretrained(made / f"{name}-2")
        assert type(model).__name__ == "LlamaForCausalLM" and model.config.tie_word_embeddings == name.startswith(
            "tied"
        )
        own = dict(model.state_dict())
        saved = weights(made / f"{name}-2")
        assert all(torch.equal(own[key], saved[key]) for key in saved)


def test_a_resumed_run_is_the_run_that_was_not_stopped(made):
    resumed, whole = made / f"{RESUMED}-2", made / "whole"
    assert losses(resumed) == losses(whole)[3:] and len(losses(resumed)) == 3
    assert logs(resumed)[0]["num_tokens"] == logs(whole)[3]["num_tokens"]
    got, want = weights(resumed), weights(whole)
    assert all(torch.equal(got[key], want[key]) for key in want)
