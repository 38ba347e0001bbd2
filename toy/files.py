"""The task as files, as a user would have them: a model's folder, preference data, samples of the reference.

And the exact answer beside them, so that another process can score what was trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from toy.language import Language
from toy.model import distribution
from toy.preferences import draw_pairs
from toy.task import Task, Truth, draw_words


class Policy(NamedTuple):
    model: LlamaForCausalLM
    distribution: Tensor  # [X, Y + 1]


def write_model(task: Task, folder: Path) -> None:
    """pi_ref in safetensors, with its tokenizer and chat template: what from_pretrained loads."""
    task.model.save_pretrained(folder)
    task.language.tokenizer.save_pretrained(folder)


def load_policy(folder: Path, language: Language) -> Policy:
    """A model's folder -> the model in fp32, and its exact distribution over the language."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"load_policy: want the folder of a model, got {folder} without config.json")
    words = AutoTokenizer.from_pretrained(folder)
    if words.get_vocab() != language.tokenizer.get_vocab():
        raise ValueError(f"load_policy: want the language's tokenizer in {folder}, got another vocabulary")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Policy(model, distribution(model, language))


def write_pairs(task: Task, path: Path, count: int, seed: int) -> None:
    """JSONL of conversations: prompt, chosen, rejected. Two different samples of pi_ref, labelled by Bradley-Terry."""
    pairs = draw_pairs(task.sampler, task.reward, count, _random(count, seed))
    _write(path, _rows(task.language, ("chosen", "rejected"), *pairs))


def write_anchors(task: Task, path: Path, count: int, seed: int) -> None:
    """JSONL of conversations: prompt, response. Samples of pi_ref, without labels."""
    words = draw_words(task.sampler, count, _random(count, seed))
    _write(path, _rows(task.language, ("response",), *words))


def write_truth(truth: Truth, path: Path) -> None:
    """pi_ref and pi* in safetensors; the language is in the file's metadata."""
    tensors = {"reference": truth.reference.contiguous(), "best": truth.best.contiguous()}
    save_file(tensors, path, metadata={"language": json.dumps(dataclasses.asdict(truth.language))})


def read_truth(path: Path) -> Truth:
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["language"])
        language = Language(told["letters"], told["longest"], tuple(told["prompts"]))
        return Truth(language, file.get_tensor("reference"), file.get_tensor("best"))


def _random(count: int, seed: int) -> torch.Generator:
    if count < 1:
        raise ValueError(f"toy.files: want a count >= 1, got {count}")
    return torch.Generator().manual_seed(seed)


def _rows(language: Language, names: tuple[str, ...], prompts: Tensor, *responses: Tensor) -> Iterator[str]:
    """prompts and each of `responses`, one for each name: indices [P]."""
    for prompt, *said in zip(prompts.tolist(), *(y.tolist() for y in responses), strict=True):
        row = {"prompt": [{"role": "user", "content": language.prompts[prompt]}]}
        for name, y in zip(names, said, strict=True):
            row[name] = [{"role": "assistant", "content": language.responses[y]}]
        yield json.dumps(row)


def _write(path: Path, rows: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(row + "\n" for row in rows)
