"""The sources that settings name -> what is trained and evaluated on, the same on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from train.batches import Corpus
from train.data import Prepared, Source, TokenOptions, decoded_example, prepare
from train.launch import main_first, say
from train.settings import Settings
from train.stage import Stage


class Data(NamedTuple):
    train: Prepared
    held_out: Prepared | None
    anchors: Prepared | None


class Corpora(NamedTuple):
    """Each with what its tokens are known by, on any machine."""

    train: Corpus
    held_out: Corpus | None
    names: tuple[str, ...]

    @property
    def named(self) -> list[tuple[Corpus, str]]:
        both = [self.train] if self.held_out is None else [self.train, self.held_out]
        return list(zip(both, self.names, strict=True))


def load(settings: Settings, stage: Stage, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Data:
    own = settings.data
    options = TokenOptions(
        max_length=own.max_length, truncation_mode=own.truncation_mode, chat_template_args=own.chat_template_args
    )

    def prepared(sources: tuple[Source, ...]) -> Prepared:
        return prepare(
            sources, stage.name, tokenizer, options, folder, columns=stage.columns, renamed=own.columns,
            sequence_columns=stage.sequence_columns, seed=settings.training.seed,
        )  # fmt: skip

    with main_first():
        train = prepared(own.train_data)
        held_out = prepared(own.eval_data) if own.eval_data else None
        seed, anchors = settings.training.seed, own.anchor_data
        samples = prepare(anchors, "anchors", tokenizer, options, folder, seed=seed) if anchors else None
    if held_out is not None and held_out.roles != train.roles:
        raise ValueError(f"eval_data: want groups of {train.roles} responses, as in train_data, got {held_out.roles}")
    return Data(train, held_out, samples)


def show(data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    for name, part in zip(Data._fields, data, strict=True):
        if part is not None:
            say(f"{name}:", *(f"  {line}" for line in part.report.lines()))
    first = data.train.dataset[0]
    shown = decoded_example(tokenizer, first["prompt"], first["responses"])
    say("the first example, scored tokens in brackets:", shown)


def divide(settings: Settings, stage: Stage, data: Data) -> Corpora:
    """With eval_fraction, whole prompts are held out: no prompt is on both sides, however often its rows appear."""
    anchors = None if data.anchors is None else data.anchors.dataset
    fraction, seed = settings.data.eval_fraction, settings.training.seed
    name = data.train.fingerprint
    if fraction:
        kept, out = _split(data.train.dataset, fraction, seed)
        names = (f"{name}/{fraction}/{seed}", f"{name}/{fraction}/{seed}/held out")
        return Corpora(Corpus(kept, stage, anchors), Corpus(out, stage), names)
    train = Corpus(data.train.dataset, stage, anchors)
    if data.held_out is None:
        return Corpora(train, None, (name,))
    return Corpora(train, Corpus(data.held_out.dataset, stage), (name, data.held_out.fingerprint))


def _split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(dataset.select_columns(["prompt"])):
        by_prompt.setdefault(tuple(row["prompt"]), []).append(i)
    groups = list(by_prompt.values())
    if len(groups) < 2:
        raise ValueError("eval_fraction: want at least two different prompts, got one")
    wanted, out = fraction * len(dataset), []  # type: tuple[float, list[int]]
    for at in torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist():
        if out and len(out) + len(groups[at]) > max(wanted, 1):
            continue
        out += groups[at]
        if len(out) >= wanted:
            break
    chosen = set(out)
    if len(chosen) == len(dataset):
        raise ValueError(f"eval_fraction: want some of {len(dataset)} examples left to train on, got {fraction}")
    return dataset.select([i for i in range(len(dataset)) if i not in chosen]), dataset.select(sorted(out))
