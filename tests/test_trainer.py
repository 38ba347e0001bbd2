"""Whole runs of train/run.py: what they print, leave behind, refuse, and how they stop."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from train_runs import (
    command_line,
    logs,
    losses,
    run,
    run_cases,
    weights,
    write_model,
    write_pairs,
    write_zero,
)

PLAIN = {
    "objective": "dpo", "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True,
    "disable_tqdm": True,
}  # fmt: skip
pytestmark = pytest.mark.timeout(900)
RUN = [sys.executable, "train/run.py"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("trainer")
    write_model(made / "model")
    write_model(made / "other", seed=1)
    write_pairs(made / "pairs.jsonl", 12)
    write_pairs(made / "held_out.jsonl", 6, seed=1)
    write_zero(made / "zero3.json")
    return made


def keys(folder: Path, name: str, **own: object) -> dict[str, object]:
    shared = {"model": str(folder / "model"), "train_data": str(folder / "pairs.jsonl")}
    return {**PLAIN, **shared, "output_dir": str(folder / name), **own}


@pytest.fixture(scope="module")
def runs(folder) -> Path:
    """Runs that succeed, in one process; the later ones stand on the earlier ones' files."""
    held_out = str(folder / "held_out.jsonl")
    cache = str(folder / "cache")
    cases = [
        keys(folder, "first", reference_cache=cache, eval_data=held_out),
        keys(folder, "second", reference_cache=cache, eval_data=held_out),
        keys(folder, "engine", reference="engine"),
        keys(folder, "other reference", reference_model=str(folder / "other")),
        keys(
            folder, "best", eval_data=held_out, num_train_epochs=4, eval_steps=1, save_steps=1, save_total_limit=2,
            load_best_model_at_end=True, metric_for_best_model="rewards/margins", greater_is_better=False,
        ),
        keys(folder, "adapter", lora_r=4, lora_merge=True, learning_rate=0.05),
        keys(folder, "bf16", bf16=True, gradient_checkpointing=True),
        keys(folder, "fraction", eval_fraction=0.25, token_stats=True),
        keys(folder, "jsonl only", report_to=["jsonl", "tensorboard"]),
        keys(folder, "once", train_data=[{"path": str(folder / "pairs.jsonl"), "limit": 4}], max_steps=3),
    ]  # fmt: skip
    (folder / "printed").write_text(run_cases(list(map(command_line, cases)), folder, 1))
    return folder


def test_the_reference_is_scored_once_and_found_again(runs):
    printed = (runs / "printed").read_text()
    found = re.findall(r"reference log-probs: (computing \d+ groups|found)", printed)
    assert found[:2] == ["computing 18 groups", "found"]
    assert losses(runs / "first") == losses(runs / "second")
    assert losses(runs / "first")[0] == pytest.approx(0.693147, abs=1e-5)
    assert len(list((runs / "cache").iterdir())) == 2


def test_cached_and_asked_references_are_the_same(runs):
    assert losses(runs / "engine") == pytest.approx(losses(runs / "first"), abs=1e-6)


def test_another_reference_model_is_another_loss(runs):
    other = losses(runs / "other reference")
    assert abs(other[0] - 0.693147) > 1e-3


def test_the_best_checkpoint_is_kept_and_loaded(runs):
    rows = [row for row in logs(runs / "best") if "eval_rewards/margins" in row]
    best = min(rows[:-1], key=lambda row: row["eval_rewards/margins"])
    steps = sorted(int(path.name.split("-")[1]) for path in (runs / "best").glob("checkpoint-*"))
    assert steps == sorted({int(best["step"]), 11, 12})
    saved, kept = weights(runs / "best"), weights(runs / "best" / f"checkpoint-{best['step']}")
    assert all(torch.equal(saved[key], kept[key]) for key in kept)
    state = json.loads((runs / "best" / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(runs / "best" / f"checkpoint-{best['step']}")


def test_an_adapter_merged_is_the_adapted_model(runs):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(runs / "model")
    adapted = PeftModel.from_pretrained(base, str(runs / "adapter")).eval()
    merged = AutoModelForCausalLM.from_pretrained(runs / "adapter" / "merged").eval()
    ids = torch.arange(12)[None]
    want = adapted(input_ids=ids).logits
    assert torch.allclose(merged(input_ids=ids).logits, want, atol=1e-5)
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(input_ids=ids).logits, want, atol=1e-2)


def test_an_adapter_starts_at_its_reference(runs):
    assert losses(runs / "adapter")[0] == pytest.approx(0.693147, abs=1e-6)


def test_bf16_is_autocast_without_deepspeed_and_close(runs):
    assert losses(runs / "bf16") == pytest.approx(losses(runs / "first"), abs=2e-2)
    assert {value.dtype for value in weights(runs / "bf16").values()} == {torch.float32}


def test_logs_have_the_names_that_users_know(runs):
    train, last = logs(runs / "fraction")[0], logs(runs / "fraction")[-1]
    known = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    known |= {"logps/chosen", "logps/rejected", "entropy", "num_tokens", "mean_token_accuracy"}
    more = {"margins/q05", "margins/q50", "margins/q95", "saturated", "kl", "tokens_per_second", "loss", "grad_norm"}
    assert known | more <= set(train)
    assert {f"eval_{name}" for name in known | {"loss", "kl", "margins/q50"}} <= set(last)
    without = logs(runs / "first")
    assert "entropy" not in without[0] and "eval_entropy" in without[-1]
    assert len([row for row in logs(runs / "fraction") if "loss" in row]) == 3  # 9 of 12 pairs, 4 at a time


def test_tensorboard_files(runs):
    assert list((runs / "jsonl only").rglob("events.out.tfevents*"))


def test_the_settings_that_ran_are_written_and_run_again(runs):
    written = runs / "first" / "settings.yaml"
    assert yaml.safe_load(written.read_text())["per_device_train_batch_size"] == 4
    run([*RUN, "--config", str(written), "--output_dir", str(runs / "again")])
    assert losses(runs / "again") == losses(runs / "first")


def test_max_steps_goes_round_the_data(runs):
    assert len(losses(runs / "once")) == 3


# what is refused


def refused(*command: str) -> str:
    return run([*RUN, *command], ok=False)


def test_a_folder_with_another_run(runs):
    before = (runs / "first" / "settings.yaml").read_text()
    for more in ({}, {"resume_from_checkpoint": "auto"}):
        printed = refused(*command_line(keys(runs, "first", model=str(runs / "other"), **more)))
        assert "output_dir: want a folder without a run in it" in printed
    assert (runs / "first" / "settings.yaml").read_text() == before


@pytest.fixture(scope="module")
def stopped(folder) -> Path:
    """A run that was stopped after two of its three steps."""
    run([*RUN, *command_line(keys(folder, "stopped", save_steps=1))])
    shutil.rmtree(folder / "stopped" / "checkpoint-3")
    return folder


def test_a_checkpoint_of_other_data_or_another_model(stopped):
    write_pairs(stopped / "changed.jsonl", 12, seed=9)
    before = (stopped / "stopped" / "settings.yaml").read_text()
    changes = {
        "data": {"train_data": str(stopped / "changed.jsonl")},
        "model": {"model": str(stopped / "other")},
        "lora_r": {"lora_r": 2},
    }
    for name, change in changes.items():
        own = keys(stopped, "stopped", save_steps=1, resume_from_checkpoint="auto", **change)
        assert re.search(rf"is of another run: .*{name}: ", refused(*command_line(own)))
    assert (stopped / "stopped" / "settings.yaml").read_text() == before


def test_intervals_may_change_on_resume_and_a_finished_run_stays_what_it_is(stopped):
    own = keys(stopped, "stopped", save_steps=5, logging_steps=3, resume_from_checkpoint="auto")
    (stopped / "stopped" / "log.jsonl").unlink()
    run([*RUN, *command_line(own)])
    assert [row["step"] for row in logs(stopped / "stopped") if "loss" in row] == [3]
    before = weights(stopped / "stopped")
    again = run([*RUN, *command_line(own)])
    assert "nothing is left to train" in again
    after = weights(stopped / "stopped")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_deepspeed_without_the_gathering_that_saving_needs(folder):
    config = json.loads((folder / "zero3.json").read_text())
    del config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    (folder / "no gather.json").write_text(json.dumps(config))
    printed = refused(*command_line(keys(folder, "x", deepspeed=str(folder / "no gather.json"))))
    assert "want stage3_gather_16bit_weights_on_model_save true" in printed


def test_a_loss_that_is_not_finite_stops_before_any_weight_has_changed(folder):
    """One token's embedding is NaN, and one pair has it."""
    broken = folder / "broken"
    shutil.copytree(folder / "model", broken)
    values = weights(broken)
    ids = json.loads((broken / "tokenizer.json").read_text())["model"]["vocab"]
    values["model.embed_tokens.weight"][ids["9"]] = torch.nan
    save_file(values, broken / "model.safetensors", metadata={"format": "pt"})
    rows = (folder / "pairs.jsonl").read_text().splitlines()
    row = json.loads(rows[5])
    rows[5] = json.dumps({**row, "chosen": row["chosen"] + "9a"})
    (folder / "one bad.jsonl").write_text("\n".join(rows))
    own = keys(folder, "not finite", model=str(broken), train_data=str(folder / "one bad.jsonl"), objective="simpo",
               per_device_train_batch_size=12, save_steps=1)  # fmt: skip
    printed = run([*RUN, *command_line(own)], ok=False)
    assert "the loss of step 1 is not finite; no weight has been changed by it" in printed
    written = json.loads((folder / "not finite" / "not_finite-rank0.json").read_text())
    assert written == {"after_step": 0, "examples": ["one bad.jsonl:6"]} or written["examples"] == ["one bad.jsonl:5"]
    assert not list((folder / "not finite").glob("checkpoint-*"))


def test_anchors_where_the_objective_takes_none_and_none_where_it_does(folder):
    samples = {"lam": 0.1, "samples": "anchors"}
    printed = run([*RUN, *command_line(keys(folder, "x", objective="expo_comp", objective_args=samples))], ok=False)
    assert "anchor_data: expo_comp averages over samples of the reference" in printed
    own = keys(folder, "x", anchor_data=str(folder / "pairs.jsonl"), per_device_anchors=2)
    assert "anchor_data: dpo takes none" in run([*RUN, *command_line(own)], ok=False)
    assert not (folder / "x").exists()


# a look before a run, and the other ways to start one


def test_dry_run_shows_data_and_memory_and_leaves_nothing(folder):
    own = keys(folder, "dry", dry_run=True, deepspeed=str(folder / "zero3.json"), bf16=True)
    printed = run([*RUN, *command_line(own)])
    assert "kept 12 examples" in printed and "[[" in printed
    for part in ("weights", "gradients", "optimizer", "activations", "head"):
        assert part in printed.lower(), part
    assert not (folder / "dry").exists()


def test_the_deepspeed_command(folder):
    own = keys(folder, "launched", deepspeed=str(folder / "zero3.json"), per_device_train_batch_size=2)
    launcher = Path(sys.executable).parent / "deepspeed"
    run([str(launcher), "--num_accelerators", "2", "train/run.py", *command_line(own)])
    reference = keys(folder, "not launched")
    run([*RUN, *command_line(reference)])
    assert losses(folder / "launched") == pytest.approx(losses(folder / "not launched"), abs=1e-5)
