"""A model's folder or hub name -> what is known before its weights are loaded, and by what it is known again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")
_WEIGHTS = (".safetensors", ".bin")
_SETTINGS = ("config", "generation_config", "tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_t")
_BLOCKS, _BLOCK = 64, 1 << 16  # of a file of weights, what is looked at where it has more


class Checkpoint(NamedTuple):
    path: str
    revision: str | None
    trust_remote_code: bool
    dtype: str
    eos: tuple[int, ...]  # any of them ends a response
    pad: int
    vocabulary: int
    positions: int | None  # tokens of prompt and response, where the model has a limit
    content: str  # of its files; another one after training into the same folder


def open_checkpoint(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False, dtype: str = "auto",
    chat_template: str | None = None,
) -> tuple[Checkpoint, PreTrainedTokenizerBase]:  # fmt: skip
    """chat_template: a file or the template itself, in place of the tokenizer's."""
    _check_path(path)
    path = str(Path(path)) if Path(path).is_dir() else path  # one name of a folder, however it was written
    if dtype not in DTYPES:
        raise ValueError(f"dtype: want one of {', '.join(DTYPES)}, got {dtype!r}")
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = _template(chat_template)
    text = config.get_text_config()
    eos = _eos(path, revision, config, tokenizer)
    pad = eos[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    commit = getattr(config, "_commit_hash", None)
    content = _content(Path(path)) if Path(path).is_dir() else str(commit or revision)
    own = str(getattr(text, "dtype", None) or torch.float32).removeprefix("torch.")
    positions = getattr(text, "max_position_embeddings", None)
    made = Checkpoint(
        path, revision, trust_remote_code, own if dtype == "auto" else dtype, eos, pad, text.vocab_size, positions,
        content,
    )  # fmt: skip
    return made, tokenizer


def _check_path(path: str) -> None:
    folder = Path(path)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ValueError(f"model: want a whole model, got an adapter in {path}; train with lora_merge: true")
        if not (folder / "config.json").is_file():
            raise ValueError(f"model: want the folder of a model, got {path} without config.json")
    elif folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise FileNotFoundError(f"model: want the folder of a model or a name on the hub, got {path}")


def _template(given: str) -> str:
    """Neither a template nor a file that is there: a mistyped file's name would be said to every prompt."""
    if os.path.isfile(given):  # not Path's, which fails on a template that is longer than a file's name may be
        return Path(given).read_text(encoding="utf-8")
    if "{" not in given:
        raise FileNotFoundError(f"chat_template: want a file or a template, got {given!r}")
    return given


def _eos(path: str, revision: str | None, config: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokenizer's first, then the model's own; chat models have several."""
    try:
        own = GenerationConfig.from_pretrained(path, revision=revision or "main").eos_token_id
    except OSError:  # no such file: the older place
        own = config.get_text_config().eos_token_id
    listed = own if isinstance(own, list) else [own]
    found = dict.fromkeys(token for token in (tokenizer.eos_token_id, *listed) if token is not None)
    if not found:
        raise ValueError(f"model: want an eos token, which ends a response, got {path} without one")
    return tuple(found)


def _content(folder: Path) -> str:
    """Of weights their sizes and blocks spread over each file: training moves all of them, and hashing 16 GB takes as
    long as generating a little."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for start in _starts(size):
                    file.seek(start)
                    digest.update(file.read(_BLOCK))
        elif path.is_file() and path.name.startswith(_SETTINGS):
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _starts(size: int) -> list[int]:
    if size <= _BLOCKS * _BLOCK:
        return list(range(0, size, _BLOCK))
    return [i * (size - _BLOCK) // (_BLOCKS - 1) for i in range(_BLOCKS)]
