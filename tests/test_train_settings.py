"""The trainer's keys: one typed reader for YAML and command line, and an error for what is unknown or contradictory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from expo_kernels.objectives import ExpoReg
from train.arguments import GROUPS, KEYS, parse, write_yaml
from train.data.sources import Source
from train.settings import DataSettings, ModelSettings, ObjectiveSettings, OutputSettings, Settings, TrainingSettings

ROOT = Path(__file__).parent.parent
REQUIRED = {"model": "m", "train_data": "a.jsonl", "objective": "sft", "output_dir": "o"}
DOCUMENTED = {  # by hand, so that a renamed key or a changed default is seen
    "model": {
        "model": None, "model_revision": None, "tokenizer": None, "trust_remote_code": False,
        "attn_implementation": "sdpa", "bf16": False, "gradient_checkpointing": False, "lora_r": 0, "lora_alpha": 16.0,
        "lora_dropout": 0.0, "lora_target_modules": None, "lora_modules_to_save": None, "lora_merge": False,
        "router_aux_loss_coef": 0.0, "packing": "none", "shared_prompts": False, "backend": "auto",
        "workspace_mb": 1024, "sparsity": "none", "sparsity_tau": 0.01, "sparsity_theta": 0.004,
    },
    "data": {
        "train_data": None, "eval_data": (), "eval_fraction": 0.0, "anchor_data": (), "per_device_anchors": 0,
        "columns": {}, "max_length": 1024, "truncation_mode": "keep_start", "chat_template": None,
        "chat_template_args": {}, "data_cache": None, "dataloader_num_workers": 0,
    },
    "objective": {
        "objective": None, "objective_args": {}, "reference": "auto", "reference_model": None, "reference_cache": None,
    },
    "training": {
        "num_train_epochs": 1.0, "max_steps": -1, "per_device_train_batch_size": 4, "max_tokens": None,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 1, "learning_rate": 1e-6, "lr_scheduler_type": "cosine",
        "lr_scheduler_kwargs": {}, "warmup_steps": 0.0, "optim": "adamw_torch", "optim_args": None, "weight_decay": 0.0,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "seed": 42,
        "deepspeed": None, "use_cpu": False, "ddp_timeout": 1800,
    },
    "output": {
        "output_dir": None, "run_name": None, "logging_steps": 10, "report_to": ("jsonl",), "eval_steps": 0,
        "save_steps": 0, "save_total_limit": 3, "metric_for_best_model": None, "greater_is_better": None,
        "load_best_model_at_end": False, "resume_from_checkpoint": None, "resume_changed": False,
        "resume_at_other_ranks": False, "overwrite_output_dir": False,
        "save_only_model": False, "token_stats": False, "disable_tqdm": False, "dry_run": False, "dry_run_ranks": 0,
    },
}  # fmt: skip
LORA = "--lora_r 8"
BEST = "--load_best_model_at_end --eval_fraction 0.1 --eval_steps 5 --save_steps 5"
ANCHORS = "--anchor_data c.jsonl --per_device_anchors 2"
REACHED = {  # key: (its words on the command line, what they mean, what it goes with)
    "model": ("folder", "folder", ""),
    "model_revision": ("main", "main", ""),
    "tokenizer": ("5", "5", ""),
    "trust_remote_code": ("yes", True, ""),
    "attn_implementation": ("eager", "eager", ""),
    "bf16": ("on", True, ""),
    "gradient_checkpointing": ("true", True, ""),
    "lora_r": ("4", 4, ""),
    "lora_alpha": ("32", 32.0, LORA),
    "lora_dropout": ("0.05", 0.05, LORA),
    "lora_target_modules": ("q_proj v_proj", ("q_proj", "v_proj"), LORA),
    "lora_modules_to_save": ("lm_head", ("lm_head",), LORA),
    "lora_merge": ("true", True, LORA),
    "router_aux_loss_coef": ("0.01", 0.01, ""),
    "packing": ("mask", "mask", ""),
    "shared_prompts": ("true", True, "--packing auto"),
    "backend": ("plain", "plain", ""),
    "workspace_mb": ("256", 256, ""),
    "sparsity": ("certified", "certified", ""),
    "sparsity_tau": ("0.05", 0.05, "--sparsity certified"),
    "sparsity_theta": ("0.01", 0.01, "--sparsity unbiased"),
    "train_data": ("a.jsonl b.jsonl", (Source(path="a.jsonl"), Source(path="b.jsonl")), ""),
    "eval_data": ("e.jsonl", (Source(path="e.jsonl"),), ""),
    "eval_fraction": ("1e-2", 0.01, ""),
    "anchor_data": ("c.jsonl", (Source(path="c.jsonl"),), "--per_device_anchors 1"),
    "per_device_anchors": ("3", 3, "--anchor_data c.jsonl"),
    "columns": ('{"gap":"margin"}', {"gap": "margin"}, ""),
    "max_length": ("2048", 2048, ""),
    "truncation_mode": ("drop", "drop", ""),
    "chat_template": ("t.jinja", "t.jinja", ""),
    "chat_template_args": ('{"deep":true}', {"deep": True}, ""),
    "data_cache": ("cache", "cache", ""),
    "dataloader_num_workers": ("2", 2, ""),
    "objective": ("simpo", "simpo", ""),
    "objective_args": ('{"beta":0.5}', {"beta": 0.5}, "--objective dpo"),
    "reference": ("engine", "engine", ""),
    "reference_model": ("older", "older", ""),
    "reference_cache": ("logps", "logps", ""),
    "num_train_epochs": ("0.5", 0.5, ""),
    "max_steps": ("100", 100, ""),
    "per_device_train_batch_size": ("1", 1, ""),
    "max_tokens": ("4096", 4096, "--packing auto"),
    "per_device_eval_batch_size": ("2", 2, ""),
    "gradient_accumulation_steps": ("8", 8, ""),
    "learning_rate": ("5e-7", 5e-7, ""),
    "lr_scheduler_type": ("linear", "linear", ""),
    "lr_scheduler_kwargs": ('{"min_lr":1e-8}', {"min_lr": 1e-8}, "--lr_scheduler_type cosine_with_min_lr"),
    "warmup_steps": ("0.1", 0.1, ""),
    "optim": ("adafactor", "adafactor", ""),
    "optim_args": ("a=1,b=2", "a=1,b=2", ""),
    "weight_decay": ("0.01", 0.01, ""),
    "adam_beta1": ("0.8", 0.8, ""),
    "adam_beta2": ("0.95", 0.95, ""),
    "adam_epsilon": ("1e-6", 1e-6, ""),
    "max_grad_norm": ("0", 0.0, ""),
    "seed": ("7", 7, ""),
    "deepspeed": ("train/configs/zero3.json", "train/configs/zero3.json", ""),
    "use_cpu": ("true", True, ""),
    "ddp_timeout": ("60", 60, ""),
    "output_dir": ("out", "out", ""),
    "run_name": ("first", "first", ""),
    "logging_steps": ("1", 1, ""),
    "report_to": ("jsonl tensorboard", ("jsonl", "tensorboard"), ""),
    "eval_steps": ("5", 5, "--eval_fraction 0.1"),
    "save_steps": ("5", 5, ""),
    "save_total_limit": ("0", 0, ""),
    "metric_for_best_model": ("accuracy", "accuracy", BEST),
    "greater_is_better": ("true", True, BEST + " --metric_for_best_model accuracy"),
    "load_best_model_at_end": ("true", True, "--eval_data e.jsonl --eval_steps 5 --save_steps 5"),
    "resume_from_checkpoint": ("auto", "auto", ""),
    "resume_changed": ("true", True, "--resume_from_checkpoint auto"),
    "resume_at_other_ranks": ("true", True, "--resume_from_checkpoint auto"),
    "overwrite_output_dir": ("true", True, ""),
    "save_only_model": ("true", True, ""),
    "token_stats": ("true", True, ""),
    "disable_tqdm": ("true", True, ""),
    "dry_run": ("true", True, ""),
    "dry_run_ranks": ("8", 8, "--dry_run"),
}


def command(*words: str) -> list[str]:
    """The words, and whatever required keys they leave out."""
    given = {word.partition("=")[0].partition(".")[0].replace("-", "_").replace("__", "--", 1) for word in words}
    rest = [word for name, value in REQUIRED.items() if f"--{name}" not in given for word in (f"--{name}", value)]
    return [*words, *rest]


def read(*words: str) -> dict[str, object]:
    """-> what each key became."""
    return values(parse(command(*words)))


def values(settings: Settings) -> dict[str, object]:
    return {name: value for group in GROUPS for name, value in vars(getattr(settings, group)).items()}


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """-> the message; the last line of stderr, after the usage."""
    with pytest.raises(SystemExit) as end:
        parse(argv)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert "Traceback" not in err and err.splitlines()[-1].startswith("train/run.py: error: ")
    return err.splitlines()[-1].removeprefix("train/run.py: error: ")


@pytest.fixture
def config(tmp_path):
    """text -> the words that name a file with it, and with the required keys that it leaves out."""

    def write(text: str, complete: bool = True) -> list[str]:
        path = tmp_path / "config.yaml"
        rest = [f"{name}: {value}\n" for name, value in REQUIRED.items() if f"{name}:" not in text]
        path.write_text(text + "\n" + ("".join(rest) if complete else ""))
        return ["--config", str(path)]

    return write


def test_every_key_has_help_a_group_and_the_documented_default():
    found = {group: [field.name for field in dataclasses.fields(owner)] for group, owner in GROUPS.items()}
    assert found == {group: list(keys) for group, keys in DOCUMENTED.items()}
    assert len(KEYS) == sum(map(len, found.values())), "no name in two groups"
    assert all(len(key.field.metadata["help"]) > 5 for key in KEYS.values())
    expected = {name: default for keys in DOCUMENTED.values() for name, default in keys.items()}
    expected |= {**REQUIRED, "train_data": (Source(path="a.jsonl"),)}
    assert read() == expected


def test_help_lists_every_key_with_its_group_and_default(capsys):
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as end:
            parse(["--unknown", flag])
        assert end.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert all(f"--{name} " in text for name in KEYS) and all(f" {group}: " in text for group in GROUPS)
        assert "default: 1e-06" in text and "hub; required" in text and "default: jsonl" in text
        assert "--local_rank INT ignored: some launchers pass it" in text


def test_a_bad_key_ends_the_program_before_torch_is_imported():
    code = """if True:
        import atexit, sys
        from train.arguments import parse
        atexit.register(lambda: print(sorted({"torch", "deepspeed", "wandb"} & {*sys.modules})))
        parse(["--seed"])"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "[]\n"
    assert done.stderr == (
        "usage: train/run.py [--config FILE.yaml] --key value ...\ntrain/run.py: error: seed: want one value, got []\n"
    )


@pytest.mark.parametrize("name", KEYS)
def test_every_key_from_the_command_line(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    words, meant, beside = REACHED[name]
    texts = [words] if words.startswith("{") else words.split()
    beside = beside.split()
    found = read(f"--{name}", *texts, *beside)[name]
    assert found == meant and type(found) is type(meant)
    assert read(f"--{name.replace('_', '-')}", *texts, *beside)[name] == meant
    if len(texts) == 1:
        assert read(f"--{name}={texts[0]}", *beside)[name] == meant


@pytest.mark.parametrize("name", KEYS)
def test_every_key_survives_yaml(name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    words, _, beside = REACHED[name]
    texts = [words] if words.startswith("{") else words.split()
    settings = parse(command(f"--{name}", *texts, *beside.split()))
    write_yaml(settings, tmp_path / "settings.yaml")
    assert parse(["--config", str(tmp_path / "settings.yaml")]) == settings
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text()).keys() == settings.to_dict().keys()


def test_the_round_trip_keeps_what_only_looks_like_something_else(tmp_path):
    odd = {
        "a": "1e-6",
        "b": "010",
        "c": "no",
        "d": "2026-01-01",
        "e": 1e-6,
        "f": 3,
        "g": "é\n  x ",
        "h": "~",
        "i": ["1"],
    }
    settings = Settings(
        model=ModelSettings(model="1e-6", lora_r=2, lora_target_modules="all-linear"),
        data=DataSettings(train_data=(Source(path="7", weight=0.5, limit=3),), chat_template_args=odd),
        objective=ObjectiveSettings(objective="expo_reg", objective_args={"lam": 1e-3}),
        training=TrainingSettings(max_steps=3),
        output=OutputSettings(output_dir="no"),
    )
    write_yaml(settings, tmp_path / "settings.yaml")
    assert parse(["--config", str(tmp_path / "settings.yaml")]) == settings
    assert "num_train_epochs" not in settings.to_dict()
    assert settings.to_dict()["train_data"] == [
        {"path": "7", "split": "train", "limit": 3, "weight": 0.5, "format": "auto", "name": None, "revision": None}
    ]


YAML = [
    ("learning_rate: 1e-6", "learning_rate", 1e-6),
    ("learning_rate: '1e-6'", "learning_rate", 1e-6),
    ("learning_rate: 1", "learning_rate", 1.0),
    ("bf16: no", "bf16", False),
    ("bf16: off", "bf16", False),
    ("bf16: yes", "bf16", True),
    ("bf16: 'On'", "bf16", True),
    ("seed: 010", "seed", 10),
    ("seed: '7'", "seed", 7),
    ("report_to: none", "report_to", ("none",)),
    ("report_to: [jsonl, wandb]", "report_to", ("jsonl", "wandb")),
    ("run_name: none", "run_name", None),
    ("run_name: null", "run_name", None),
    ("run_name:", "run_name", None),
    ("run_name: 2026-01-01", "run_name", "2026-01-01"),
    ("run_name: '5'", "run_name", "5"),
    ("eval_data: []", "eval_data", ()),
    ("train_data: [a, {path: b, weight: 1e-1}]", "train_data", (Source(path="a"), Source(path="b", weight=0.1))),
    ("train_data: {path: b, limit: 5, name: none}", "train_data", (Source(path="b", limit=5),)),
    ("chat_template_args: {x: 1e-6, y: no, z: '1', w: [1.5e3]}", "chat_template_args",
     {"x": 1e-6, "y": False, "z": "1", "w": [1500.0]}),
    ("lora_target_modules: all-linear\nlora_r: 1", "lora_target_modules", "all-linear"),
    ("lora_target_modules: none\nlora_r: 1", "lora_target_modules", None),
    ("lora_target_modules: q_proj\nlora_r: 1", "lora_target_modules", ("q_proj",)),
    ("columns: {gap: margin}", "columns", {"gap": "margin"}),
    ("chat_template_args: {one: &it {x: 1}, two: {<<: *it, y: 2}}", "chat_template_args",
     {"one": {"x": 1}, "two": {"x": 1, "y": 2}}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "meant"), YAML, ids=[text for text, *_ in YAML])
def test_yaml_values(config, text, name, meant):
    found = values(parse(config(text)))[name]
    assert found == meant and type(found) is type(meant)


COMMANDS = [
    (["--bf16"], "bf16", True),
    (["--bf16", "FALSE"], "bf16", False),
    (["--bf16=no"], "bf16", False),
    (["--tokenizer", "none"], "tokenizer", None),
    (["--tokenizer", "Null"], "tokenizer", None),
    (["--greater_is_better", "none"], "greater_is_better", None),
    (["--model", "none"], "model", "none"),
    (["--max_steps", "-1"], "max_steps", -1),
    (["--seed", "010"], "seed", 10),
    (["--run_name=--x=1"], "run_name", "--x=1"),
    (["--report_to", "[jsonl, tensorboard]"], "report_to", ("jsonl", "tensorboard")),
    (["--report_to", '["wandb"]'], "report_to", ("wandb",)),
    (["--report_to", "none"], "report_to", ("none",)),
    (["--eval_data", "[]"], "eval_data", ()),
    (["--train_data", "a", "{path: b, weight: 2}"], "train_data", (Source(path="a"), Source(path="b", weight=2.0))),
    (["--train_data", '[{"path": "b"}, "c"]'], "train_data", (Source(path="b"), Source(path="c"))),
    (["--objective", "expo_reg", "--objective_args", "{lam: 1e-1}"], "objective_args", {"lam": 0.1}),
    (["--objective", "expo_reg", "--objective-args.lam", "1e-1"], "objective_args", {"lam": 0.1}),
    (["--chat_template_args.x=[1, no]"], "chat_template_args", {"x": [1, False]}),
    (["--chat_template_args.a-b", "text"], "chat_template_args", {"a-b": "text"}),
    (["--columns.gap", "5"], "columns", {"gap": "5"}),
    (["--lora_r=1", "--lora_target_modules", "all-linear"], "lora_target_modules", "all-linear"),
    (["--lora_r=1", "--lora_modules_to_save", "none"], "lora_modules_to_save", None),
]


@pytest.mark.parametrize(("words", "name", "meant"), COMMANDS, ids=[" ".join(words) for words, *_ in COMMANDS])
def test_values_on_the_command_line(words, name, meant):
    found = read(*words)[name]
    assert found == meant and type(found) is type(meant)


def test_the_command_line_overrides_the_file(config):
    words = config(
        "objective: expo_reg\nobjective_args: {lam: 0.5, temperature: 3}\nseed: 1\nreport_to: [jsonl, wandb]"
    )
    assert parse([*words, "--seed", "2"]).training.seed == 2 and parse(words).training.seed == 1
    assert parse([*words, "--report_to", "none"]).output.report_to == ("none",)
    changed = parse([*words, "--objective_args.lam", "0.2", "--objective_args.offset=1"]).objective.objective_args
    assert changed == {"lam": 0.2, "temperature": 3, "offset": 1}
    assert parse([*words, "--objective_args", "{lam: 1}"]).objective.objective_args == {"lam": 1}
    both = parse(["--objective_args.lam", "0.3", *words, "--objective_args={offset: 2}"]).objective.objective_args
    assert both == {"lam": 0.3, "offset": 2}


@pytest.mark.parametrize("words", [["--local_rank=3"], ["--local-rank", "3"], ["--local_rank=0", "--local_rank=1"]])
def test_the_launchers_local_rank_is_ignored(words, capsys):
    assert parse([*words, *command()]) == parse(command())
    assert capsys.readouterr() == ("", "")


WRONG_COMMANDS = [
    (["--learning_rat", "1"], "command line: unknown key 'learning_rat' (did you mean 'learning_rate'?)"),
    (["--learning", "1"], "command line: unknown key 'learning'"),
    (["--fp16"], "command line: unknown key 'fp16'"),
    (["--zzz"], "command line: unknown key 'zzz' (--help lists the known ones)"),
    (["--config.x", "1"], "command line: unknown key 'config'"),
    (["--seed", "1", "--seed", "1"], "seed: want it once, got it twice"),
    (["--max_length", "1", "--max-length=2"], "max_length: want it once, got it twice"),
    (["--config", "a", "--config", "b"], "config: want it once, got it twice"),
    (["--columns.a", "x", "--columns.a", "y"], "columns.a: want it once, got it twice"),
    (["--columns.a", "x", "--columns", "{a: y}"], "columns.a: want it once, got it in columns as well"),
    (["--learning_rate", "abc"], "learning_rate: want a number, got 'abc'"),
    (["--learning_rate", ""], "learning_rate: want a number, got ''"),
    (["--learning_rate"], "learning_rate: want one value, got []"),
    (["--learning_rate", "1", "2"], "learning_rate: want one value, got ['1', '2']"),
    (["--learning_rate", "nan"], "learning_rate: want above 0, got nan"),
    (["--seed", "1.5"], "seed: want an integer, got '1.5'"),
    (["--seed", "1e3"], "seed: want an integer, got '1e3'"),
    (["--seed", "none"], "seed: want an integer, got 'none'"),
    (["--bf16", "maybe"], "bf16: want true or false, got 'maybe'"),
    (["--bf16", "1"], "bf16: want true or false, got '1'"),
    (["--run_name", ""], "run_name: want text, got ''"),
    (["--report_to"], "report_to: want at least one value, got none"),
    (["--report_to=jsonl", "wandb"], "command line: want --key value, got 'wandb'"),
    (["--report_to", "[jsonl"], "report_to: want YAML, got"),
    (["stray", "--seed", "1"], "command line: want --key value, got 'stray'"),
    (["--local_rank", "0", "stray"], "local_rank: want one value, got ['0', 'stray']"),
    (["--objective_args", "[1]"], "objective_args: want a mapping, got [1]"),
    (["--objective_args", "beta"], "objective_args: want a mapping, got 'beta'"),
    (["--objective_args", "{beta: 1, beta: 2}"], "objective_args: want YAML, got 'beta' twice"),
    (["--objective_args.beta"], "objective_args.beta: want one value, got []"),
    (["--objective_args.beta", "[1"], "objective_args.beta: want YAML, got"),
    (["--seed.x", "1"], "seed.x: want an entry of a mapping, got one of seed"),
    (["--train_data", "{split: x}"], "train_data: want a path or a mapping with one, got {'split': 'x'}"),
    (["--train_data", "a", "{path: b, limitt: 1}"], "train_data[1]: unknown key 'limitt' (did you mean 'limit'?)"),
    (["--train_data", "{path: b, limit: x}"], "train_data.limit: want an integer, got 'x'"),
    (["--train_data", "{path: b, weight: 0}"], "train_data: source b: want"),
    (["--train_data", "[]"], "train_data: want at least one Source, got ()"),
    (["--config", "nowhere.yaml"], "config: want a YAML file, got 'nowhere.yaml': "),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), WRONG_COMMANDS, ids=[" ".join(words) for words, _ in WRONG_COMMANDS])
def test_wrong_command_lines(capsys, words, message):
    assert refused(capsys, command(*words)).startswith(message)


WRONG_YAML = [
    ("learning_rat: 1", "unknown key 'learning_rat' (did you mean 'learning_rate'?)"),
    ("max-length: 1", "unknown key 'max-length' (did you mean 'max_length'?)"),
    ("config: x", "unknown key 'config'"),
    ("local_rank: 0", "unknown key 'local_rank'"),
    ("objective_args.beta: 1", "unknown key 'objective_args.beta' (did you mean 'objective_args'?)"),
    ("5: 1", "unknown key 5"),
    ("seed: 1\nseed: 2", "want YAML, got 'seed' twice"),
    ("objective_args: {beta: 1, beta: 2}", "want YAML, got 'beta' twice"),
    ("seed: [", "want YAML, got"),
    ("run_name: !!python/object:os.system x", "want YAML, got"),
    ("model: 5", "model: want text, got 5"),
    ("model: no", "model: want text, got False"),
    ("model: null", "model: want text, got None"),
    ("model: [a]", "model: want text, got ['a']"),
    ("learning_rate: abc", "learning_rate: want a number, got 'abc'"),
    ("learning_rate: true", "learning_rate: want a number, got True"),
    ("learning_rate: [1]", "learning_rate: want a number, got [1]"),
    ("max_steps: 1e3", "max_steps: want an integer, got 1000.0"),
    ("max_steps: yes", "max_steps: want an integer, got True"),
    ("bf16: 1", "bf16: want true or false, got 1"),
    ("bf16: {a: 1}", "bf16: want true or false, got {'a': 1}"),
    ("report_to: 5", "report_to: want text, got 5"),
    ("report_to: null", "report_to: want text, got None"),
    ("report_to: [jsonl, 5]", "report_to[1]: want text, got 5"),
    ("columns: {gap: 5}", "columns.gap: want text, got 5"),
    ("columns: {on: x}", "columns: want text, got True"),
    ("objective_args:", "objective_args: want a mapping, got None"),
    ("train_data: 5", "train_data: want a path or a mapping with one, got 5"),
    ("train_data: [a, {path: b, weight: no}]", "train_data[1].weight: want a number, got False"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG_YAML, ids=[text for text, _ in WRONG_YAML])
def test_wrong_yaml_names_the_file(capsys, config, text, message):
    words = config(text)
    assert refused(capsys, words).startswith(f"{words[1]}: {message}")


@pytest.mark.parametrize("text", ["", "- a\n- b", "text"])
def test_a_file_that_is_not_a_mapping(capsys, config, text):
    words = config(text, complete=False)
    assert refused(capsys, words).startswith(f"{words[1]}: want a mapping of keys, got ")


def test_missing_keys_are_listed(capsys, config):
    assert "want the required keys model, train_data, objective, output_dir, on" in refused(capsys, [])
    words = [*config("model: m\noutput_dir: o", complete=False), "--objective", "sft"]
    assert "want the required keys train_data, on" in refused(capsys, words)


CONTRADICTIONS = [
    ("--eval_fraction 0.1 --eval_data e", "eval_fraction", "eval_data"),
    ("--load_best_model_at_end --eval_steps 5 --save_steps 5", "load_best_model_at_end", "eval_data"),
    ("--load_best_model_at_end --eval_data e --save_steps 5", "load_best_model_at_end", "eval_steps"),
    ("--load_best_model_at_end --eval_data e --eval_steps 5 --save_steps 7", "load_best_model_at_end", "save_steps"),
    ("--load_best_model_at_end --eval_data e --eval_steps 5 --save_steps 10", "load_best_model_at_end", "save_steps"),
    ("--resume_changed", "resume_changed", "resume_from_checkpoint"),
    ("--resume_at_other_ranks", "resume_at_other_ranks", "resume_from_checkpoint"),
    ("--shared_prompts", "shared_prompts", "packing"),
    ("--max_tokens 64", "max_tokens", "packing"),
    ("--max_tokens 64 --packing auto --per_device_train_batch_size 4", "max_tokens", "per_device_train_batch_size"),
    ("--load_best_model_at_end --eval_data e --eval_steps 5", "load_best_model_at_end", "save_steps"),
    ("--metric_for_best_model loss", "metric_for_best_model", "load_best_model_at_end"),
    ("--greater_is_better no", "greater_is_better", "metric_for_best_model"),
    (BEST + " --greater_is_better yes", "greater_is_better", "metric_for_best_model"),
    ("--lora_alpha 8", "lora_alpha", "lora_r"),
    ("--lora_dropout 0.1", "lora_dropout", "lora_r"),
    ("--lora_target_modules all-linear", "lora_target_modules", "lora_r"),
    ("--lora_modules_to_save lm_head", "lora_modules_to_save", "lora_r"),
    ("--lora_merge", "lora_merge", "lora_r"),
    ("--sparsity_tau 0.1", "sparsity_tau", "sparsity"),
    ("--sparsity_theta 0.1 --sparsity certified", "sparsity_theta", "sparsity"),
    ("--reference adapter", "reference", "lora_r"),
    ("--reference none --reference_model r", "reference_model", "reference"),
    (LORA + " --reference adapter --reference_model r", "reference_model", "reference"),
    ("--reference none --reference_cache c", "reference_cache", "reference"),
    ("--reference engine --reference_cache c", "reference_cache", "reference"),
    (LORA + " --reference adapter --reference_cache c", "reference_cache", "reference"),
    ("--resume_from_checkpoint auto --overwrite_output_dir", "resume_from_checkpoint", "overwrite_output_dir"),
    (BEST + " --save_only_model", "save_only_model", "load_best_model_at_end"),
    ("--resume_from_checkpoint auto --save_only_model", "save_only_model", "resume_from_checkpoint"),
    ("--anchor_data c", "anchor_data", "per_device_anchors"),
    ("--per_device_anchors 2", "anchor_data", "per_device_anchors"),
    ("--eval_steps 5", "eval_steps", "eval_data"),
    ("--max_steps 5 --num_train_epochs 1", "max_steps", "num_train_epochs"),
]


@pytest.mark.parametrize(("words", "one", "other"), CONTRADICTIONS, ids=[words for words, *_ in CONTRADICTIONS])
def test_contradictions_name_both_keys(capsys, words, one, other):
    told = refused(capsys, command(*words.split())).split("; ")
    keys = [message.partition(": want")[0].split(" and ") for message in told]
    assert any({one, other} == {*names} for names in keys), told


@pytest.mark.parametrize(
    "words", [BEST, ANCHORS, f"{LORA} --reference adapter", "--reference cache --reference_cache c"]
)
def test_what_goes_together(words):
    read(*words.split())


def test_all_contradictions_are_told_at_once(capsys):
    message = refused(capsys, command("--eval_fraction", "0.1", "--eval_data", "e", "--anchor_data", "c"))
    assert "eval_fraction and eval_data" in message and "anchor_data and per_device_anchors" in message


def test_steps_and_epochs_are_a_contradiction_and_the_command_line_overrides_either(capsys, config):
    words = config("num_train_epochs: 3.0")
    assert parse([*words, "--max_steps", "5"]).training.max_steps == 5
    assert parse([*words, "--max_steps", "-1"]).training.num_train_epochs == 3.0
    assert "max_steps and num_train_epochs" in refused(capsys, [*words, "--max_steps", "5", "--num_train_epochs", "2"])
    words = config("max_steps: 7")
    assert parse([*words, "--num_train_epochs", "2"]).training.max_steps == -1
    assert "max_steps and num_train_epochs" in refused(capsys, config("max_steps: 7\nnum_train_epochs: 3"))
    with pytest.raises(ValueError, match="max_steps and num_train_epochs"):
        TrainingSettings(max_steps=5, num_train_epochs=2.0)


LIMITS = {
    "at least 1": (
        ["workspace_mb", "max_length", "max_tokens", "per_device_train_batch_size", "per_device_eval_batch_size",
         "gradient_accumulation_steps", "ddp_timeout", "logging_steps"], ["0", "-1"],
    ),
    "at least 0": (
        ["lora_r", "per_device_anchors", "dataloader_num_workers", "seed", "eval_steps", "save_steps",
         "save_total_limit", "dry_run_ranks"], ["-1"],
    ),
    "at least 0 ": (["weight_decay", "max_grad_norm", "router_aux_loss_coef"], ["-1", "nan", "inf"]),
    "above 0": (
        ["learning_rate", "num_train_epochs", "adam_epsilon", "lora_alpha", "sparsity_theta"],
        ["0", "-1", "nan", "inf"],
    ),
    "at least 0 and below 1": (
        ["eval_fraction", "lora_dropout", "adam_beta1", "adam_beta2", "sparsity_tau"], ["1", "-0.1", "nan"],
    ),
    "-1 or at least 1": (["max_steps"], ["0", "-2"]),
    "a share below 1 or a whole number": (["warmup_steps"], ["-1", "1.5", "nan", "inf"]),
    "one of ": (
        ["attn_implementation", "packing", "backend", "sparsity", "truncation_mode", "reference", "lr_scheduler_type",
         "optim"],
        ["fast"],
    ),
    "none alone or some of jsonl, tensorboard, wandb, each once": (
        ["report_to"], ["mlflow", "[jsonl, none]", "[none, none]", "[jsonl, jsonl]", "[]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [(name, text, want) for want, (names, texts) in LIMITS.items() for name in names for text in texts],
)
def test_limits(capsys, name, text, want):
    assert refused(capsys, command(f"--{name}", text)).startswith(f"{name}: want {want.rstrip()}")


def test_every_number_has_a_limit():
    limited = {name for names, _ in LIMITS.values() for name in names}
    assert {name for name, key in KEYS.items() if key.hint in (int, float)} <= limited


def test_modules_of_lora(capsys):
    for text in ("[all-linear, q_proj]", "[]"):
        message = refused(capsys, command("--lora_r", "1", "--lora_target_modules", text))
        assert message.startswith("lora_target_modules: want names of modules or all-linear alone, got [")


def test_warmup_in_steps_or_shares():
    assert [read("--warmup_steps", text)["warmup_steps"] for text in ("100", "0.03", "0")] == [100.0, 0.03, 0.0]


def test_the_objective_is_made_and_checked(capsys, config):
    settings = parse(command("--objective", "expo_reg", "--objective_args", "{lam: 0.2}"))
    assert settings.make_objective() == ExpoReg(lam=0.2)
    for words, message in [
        (["--objective", "expo_regg"], "make_objective: want one of "),
        (["--objective", "expo_reg"], "make_objective: expo_reg needs lam"),
        (["--objective", "dpo", "--objective_args.betta", "1"], "make_objective: dpo takes beta"),
        (["--objective", "dpo", "--objective_args.beta", "x"], "dpo: want beta a number"),
    ]:
        assert refused(capsys, command(*words)).startswith(message)


def test_the_deepspeed_file_is_looked_at(capsys, tmp_path):
    path = tmp_path / "zero.json"
    assert "want a JSON object in" in refused(capsys, command("--deepspeed", str(path)))
    for text in ("{", "[1]"):
        path.write_text(text)
        assert refused(capsys, command("--deepspeed", str(path))).startswith("deepspeed: want a JSON object in")
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert read("--deepspeed", str(path))["deepspeed"] == str(path)


def test_the_settings_refuse_what_did_not_come_through_the_reader():
    with pytest.raises(ValueError, match="train_data: want at least one Source"):
        DataSettings(train_data="a.jsonl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eval_data: want each a Source"):
        DataSettings(train_data=(Source(path="a"),), eval_data=("b",))  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse(command()).training.seed = 1  # type: ignore[misc]
