"""The recipes are good settings, the documents name what is there, and the dialogue template is HH's transcripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from toy.tokenizer import tokenizer
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
