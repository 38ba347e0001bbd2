"""The recipes are good settings, the documents name what is there, and the dialogue template is HH's transcripts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from tools import marked, training_tables
from toy.tokenizer import tokenizer
from train import build
from train.arguments import KEYS, parse
from train.data import FORMATS, STAGES
from train.data.transcripts import hh_messages
from train.stage import stage_of

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "train" / "configs").glob("*.yaml"))
PAGE = (ROOT / "docs" / "training.md").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_is_good_settings(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = parse(["--config", str(path)])
    stage = stage_of(settings.make_objective())
    assert stage.anchors is bool(settings.data.anchor_data)
    template = settings.data.chat_template
    assert template is None or Path(template).is_file()
    assert path.stem == "demo" or re.search(r"# For \d+ x \w+ \d+ GB:", path.read_text())


def rows_for(source: str) -> list[dict[str, object]]:
    """Of the schema that the source has on the hub, or that the recipe states."""
    words = ["ab", "cde", "f g", "hij", "kl"]
    if "ultrafeedback" in source:
        user = [{"role": "user", "content": "hi"}]
        return [
            {"prompt": "hi", "prompt_id": "0", "score_chosen": 8.0, "score_rejected": 3.0,
             "messages": [*user, {"role": "assistant", "content": word}],
             "chosen": [*user, {"role": "assistant", "content": word}],
             "rejected": [*user, {"role": "assistant", "content": word[::-1] + "x"}]}
            for word in words
        ]  # fmt: skip
    if "hh" in source and "samples" not in source:
        opening = "\n\nHuman: a {0}\n\nAssistant: {1}"
        return [{"chosen": opening.format(w, w), "rejected": opening.format(w, w[::-1] + "x")} for w in words]
    if "samples" in source or "anchors" in source:
        return [{"prompt": "a b", "response": word} for word in words]
    return [{"prompt": f"a {word} ", "chosen": word, "rejected": word[::-1] + "x"} for word in words]


def tiny(family: str, folder: Path) -> Path:
    words = tokenizer()
    shared = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = GPTNeoXConfig if "pythia" in family else LlamaConfig
    AutoModelForCausalLM.from_config(kind(**shared, **sizes, max_position_embeddings=64)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_runs_dry_on_a_tiny_model_of_its_family(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    own = parse(["--config", str(path)])
    given = ["--config", str(path), "--model", str(tiny(path.stem, tmp_path / "model")), "--deepspeed", "none",
             "--use_cpu", "--dry_run", "--dry_run_ranks", "8", "--output_dir", str(tmp_path / "out")]  # fmt: skip
    given += ["--lora_r", "2"] if own.model.lora_r else []
    for key in ("train_data", "eval_data", "anchor_data"):
        for source in getattr(own.data, key):
            file = tmp_path / f"{key}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows_for(source.path)))
            given += [f"--{key}", str(file)]
    build.run(parse(given))
    printed = capsys.readouterr().out
    assert "expected memory of one of 8 ranks" in printed and "total, fused" in printed and "[[" in printed


def test_the_dialogue_template_writes_hh_transcripts():
    words = tokenizer()
    words.chat_template = (ROOT / "train" / "configs" / "dialogue.jinja").read_text()
    text = "\n\nHuman: a b\n\nAssistant: c\n\nHuman: d\n\nAssistant: e"
    chat = hh_messages(text)
    whole = words.apply_chat_template(chat, tokenize=False)
    opened = words.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
    assert whole.replace("<eos>", "") == text and whole.count("<eos>") == 2
    assert whole.startswith(opened) and whole[len(opened) :] == " e<eos>"


def test_the_page_names_every_format_and_stage_and_no_key_that_is_not():
    for name in (*FORMATS, *STAGES):
        assert re.search(rf"`?{name}`?", PAGE), name
    given = set(re.findall(r"`(\w+): [^`]*`", PAGE)) | set(re.findall(r"--(\w+)", PAGE))
    launchers = {"nproc_per_node", "nnodes", "node_rank", "master_addr", "hostfile", "num_gpus"}
    launchers |= {"no", "help", "config", "key"}
    others = {"gap", "reference_point", "weight", "format", "modules_to_save"}  # of objectives, sources and peft
    assert given - launchers - others <= set(KEYS), given - set(KEYS)


def test_the_page_names_every_file():
    listed = PAGE.split("## Where things are")[1]
    here = ROOT / "train"
    for path in [*here.glob("*.py"), here / "data"]:
        if path.name != "__init__.py":
            assert path.name in listed, path.name


@pytest.mark.parametrize("name", training_tables.PAGES)
def test_the_pages_tables_are_what_the_code_says(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert marked.read(training_tables.PAGES[name], name) == training_tables.generated()[name]


@pytest.mark.parametrize("name", training_tables.RECIPES)
def test_a_recipe_states_the_memory_that_it_is_expected_to_take(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    estimate = training_tables.recipe_estimate(name, training_tables.RECIPES[name])
    lines = " ".join((ROOT / "train" / "configs" / f"{name}.yaml").read_text().replace("#", " ").split())
    stated = re.search(r"(\d+) GiB a GPU \((\d+) with a naive head\)", lines)
    assert [round(x / 2**30) for x in (estimate.total_ours, estimate.total_naive)] == [int(x) for x in stated.groups()]
