"""Train, generate, judge, report: each by its command, offline, held against the exact win rate."""

from __future__ import annotations

import json
import math

import pytest
from train_runs import command_line

from evaluation import generate, winrate
from evaluation.toy_judge import ToyJudge, exact_win_rate, serving
from toy.files import load_policy, read_truth, write_model, write_pairs, write_truth
from toy.language import Language
from toy.task import make_task
from train import build
from train.arguments import parse

SMALL = Language(letters="ab", longest=2, prompts=("0", "1", "2"))
SAMPLES = 150  # of each prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reference, its truth, preferences, and a policy that the trainer made of them."""
    made = tmp_path_factory.mktemp("pipeline")
    task = make_task(SMALL, steps=30, batch=64, lr=5e-3)
    write_model(task, made / "reference")
    write_truth(task, made / "truth.safetensors")
    write_pairs(task, made / "pairs.jsonl", 256, seed=1)
    write_pairs(task, made / "held_out.jsonl", 40, seed=2)
    keys = {
        "model": str(made / "reference"), "train_data": str(made / "pairs.jsonl"), "output_dir": str(made / "policy"),
        "objective": "dpo", "objective_args": {"beta": 0.5}, "per_device_train_batch_size": 32, "max_steps": 12,
        "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    build.run(parse(command_line(keys)))
    return made


def responses(folder, name, seed):
    out = folder / f"{name}.jsonl"
    assert generate.main([
        "--model", str(folder / name), "--prompts", str(folder / "held_out.jsonl"), "--out", str(out), "--seed", seed,
        "--samples", str(SAMPLES), "--max-tokens", "6", "--batch-size", "450",
    ]) == 0  # fmt: skip
    return str(out)


def test_from_training_to_the_report(folder, capsys):
    a, b = responses(folder, "policy", "0"), responses(folder, "reference", "1")
    truth = read_truth(folder / "truth.safetensors")
    judge = ToyJudge.of_file(folder / "truth.safetensors")
    with serving(judge) as url:
        assert winrate.main([
            "--a", a, "--b", b, "--judge-url", url, "--judge-model", "toy", "--template", "helpful",
            "--out", str(folder / "out"), "--cache", str(folder / "cache"),
        ]) == 0  # fmt: skip
    (found,) = json.loads((folder / "out" / "report.json").read_text())
    pairs = SAMPLES * len(SMALL.prompts)
    assert (found["pairs"], found["scored"], found["unparsable"], found["failed"]) == (pairs, pairs, 0, 0)
    assert (found["consistency"]["value"], found["first_place"]["value"]) == (1.0, 0.5)
    policy, reference = (load_policy(folder / name, truth.language).distribution for name in ("policy", "reference"))
    exact = exact_win_rate(policy, reference, judge.reward)
    assert exact > 0.55, "twelve steps made it better"
    assert found["win_rate"]["value"] == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / pairs))
    lines = [json.loads(line) for line in (folder / "out" / "per_prompt.jsonl").read_text().splitlines()]
    assert [line["model"] for line in lines] == ["policy"] * 3
    assert (folder / "out" / "report.md").read_text() in capsys.readouterr().out
