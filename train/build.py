"""From settings to a finished run, one step after the other."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from train import checkpoints, launch, reference
from train.arguments import write_yaml
from train.batches import Collator, Corpus
from train.data import Prepared, Source, TokenOptions, decoded_example, prepare
from train.dry_run import dry_run
from train.export import save_final
from train.hf_arguments import training_arguments
from train.launch import main_first, rank, say, world
from train.policy import check_vocabulary, load_config, load_policy, load_tokenizer, pad_id
from train.settings import Settings
from train.stage import Stage, stage_of
from train.trainer import PreferenceTrainer
from train.watching import JsonLines, Progress


class Data(NamedTuple):
    train: Prepared
    held_out: Prepared | None
    anchors: Prepared | None


def run(settings: Settings) -> None:
    """Every rank calls it."""
    training = settings.training
    launch.start(deepspeed=training.deepspeed is not None, use_cpu=training.use_cpu, timeout=training.ddp_timeout)
    stage = stage_of(settings.make_objective())
    kind = reference.kind(settings, stage)
    _check_anchors(settings, stage)
    tokenizer, config = load_tokenizer(settings), load_config(settings.model)
    check_vocabulary(config, tokenizer)
    if settings.output.dry_run:
        dry_run(
            settings, stage, kind, config, lambda folder: _data(settings, stage, tokenizer, folder), _show, tokenizer
        )
        return
    args = training_arguments(settings)  # before any model is loaded: ZeRO-3 shards what is loaded after
    resume = _claim(settings)
    data = _data(settings, stage, tokenizer, _data_folder(settings))
    _show(data, tokenizer)
    corpus, held_out = _corpora(settings, stage, data)
    collator = Collator(stage, corpus.roles, pad_id(tokenizer))
    if kind == "cache":
        _tables(settings, stage, data, corpus, held_out, collator, args.device)
    set_seed(training.seed)  # an adapter is drawn
    with contextlib.ExitStack() as kept:
        frozen = kept.enter_context(reference.frozen(settings, args.device)) if kind == "engine" else None
        trainer = PreferenceTrainer(
            load_policy(settings.model, sharded=training.deepspeed is not None), args, settings=settings, stage=stage,
            reference=kind, frozen=frozen, corpus=corpus, held_out=held_out, collator=collator, tokenizer=tokenizer,
            identity=_identity(settings, stage, data), callbacks=_callbacks(settings),
        )  # fmt: skip
        _train(trainer, settings, tokenizer, config, resume)


def _train(
    trainer: PreferenceTrainer, settings: Settings, tokenizer: PreTrainedTokenizerBase, config: Any, resume: Path | None
) -> None:
    if resume is not None:
        checkpoints.check_identity(resume, trainer.identity)
        say(f"resuming from {resume}")
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if trainer.eval_dataset is not None:
        found = trainer.evaluate()
        say("evaluation: " + ", ".join(f"{name} {value:.5g}" for name, value in sorted(found.items())))
    save_final(trainer, settings, tokenizer)
    trainer.save_state()


def _check_anchors(settings: Settings, stage: Stage) -> None:
    name = settings.objective.objective
    if stage.anchors and not settings.data.anchor_data:
        raise ValueError(f"anchor_data: {name} averages over samples of the reference; want a file of them, got none")
    if settings.data.anchor_data and not stage.anchors:
        raise ValueError(f"anchor_data: {name} takes no anchors (expo_comp: objective_args: {{samples: anchors}})")


def _claim(settings: Settings) -> Path | None:
    """-> the checkpoint to go on from. One rank looks, so all see the same."""
    output, asked = Path(settings.output.output_dir), settings.output.resume_from_checkpoint
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found = [_resume(output, asked, settings), None]
        except (OSError, ValueError) as error:
            found = [None, error]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found)
    resume, refused = found
    if refused is not None:
        raise refused
    return resume


def _resume(output: Path, asked: str | None, settings: Settings) -> Path | None:
    resume = checkpoints.newest(output) if asked == "auto" else None if asked is None else Path(asked)
    if resume is not None and not (resume / "trainer_state.json").is_file():
        raise ValueError(f"resume_from_checkpoint: want a checkpoint's folder or auto, got {asked}")
    aside = checkpoints.claim(output, resume=asked is not None, overwrite=settings.output.overwrite_output_dir)
    if aside is not None:
        say(f"output_dir: the run that was in {output} is now in {aside}")
    write_yaml(settings, output / "settings.yaml")
    return resume


def _data_folder(settings: Settings) -> Path:
    return Path(settings.data.data_cache or Path(settings.output.output_dir) / "data")


def _data(settings: Settings, stage: Stage, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Data:
    own = settings.data
    options = TokenOptions(
        max_length=own.max_length, truncation_mode=own.truncation_mode, chat_template_args=own.chat_template_args
    )

    def prepared(sources: tuple[Source, ...], name: str, columns: bool) -> Prepared:
        return prepare(
            sources, name, tokenizer, options, folder, columns=stage.columns if columns else (),
            sequence_columns=stage.sequence_columns if columns else (), renamed=own.columns if columns else {},
            seed=settings.training.seed,
        )  # fmt: skip

    with main_first():
        return Data(
            prepared(own.train_data, stage.name, True),
            prepared(own.eval_data, stage.name, True) if own.eval_data else None,
            prepared(own.anchor_data, "anchors", False) if own.anchor_data else None,
        )


def _show(data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    for name, part in zip(Data._fields, data, strict=True):
        if part is not None:
            say(f"{name}:", *(f"  {line}" for line in part.report.lines()))
    first = data.train.dataset[0]
    say(
        "the first example, scored tokens in brackets:", decoded_example(tokenizer, first["prompt"], first["responses"])
    )


def _corpora(settings: Settings, stage: Stage, data: Data) -> tuple[Corpus, Corpus | None]:
    anchors = None if data.anchors is None else data.anchors.dataset
    train, held_out = data.train.dataset, None if data.held_out is None else data.held_out.dataset
    if settings.data.eval_fraction:
        train, held_out = _split(train, settings.data.eval_fraction, settings.training.seed)
    return Corpus(train, stage, anchors), None if held_out is None else Corpus(held_out, stage)


def _split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    n = len(dataset)
    out = max(1, round(n * fraction))
    if out >= n:
        raise ValueError(f"eval_fraction: want some of {n} examples left to train on, got {fraction}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return dataset.select(sorted(order[out:])), dataset.select(sorted(order[:out]))


def _tables(
    settings: Settings, stage: Stage, data: Data, corpus: Corpus, held_out: Corpus | None, collator: Collator,
    device: torch.device,
) -> None:  # fmt: skip
    folder = Path(settings.objective.reference_cache or Path(settings.output.output_dir) / "reference")
    split = f"/{settings.data.eval_fraction}/{settings.training.seed}" if settings.data.eval_fraction else ""
    corpora = [(corpus, data.train.fingerprint + split)]
    if held_out is not None:
        own = data.train.fingerprint + split + "/held out" if data.held_out is None else data.held_out.fingerprint
        corpora.append((held_out, own))
    reference.Table(folder, settings, stage).fill(corpora, collator, device)


def _identity(settings: Settings, stage: Stage, data: Data) -> dict[str, Any]:
    """What must be the same for a resumed run to be the run it resumes."""
    training = settings.training
    return {
        "model": settings.model.model,
        "lora_r": settings.model.lora_r,
        "objective": repr(stage.objective),
        "data": data.train.fingerprint,
        "anchors": None if data.anchors is None else data.anchors.fingerprint,
        "eval_fraction": settings.data.eval_fraction,
        "seed": training.seed,
        "ranks": world(),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "per_device_anchors": settings.data.per_device_anchors,
        "deepspeed": None if training.deepspeed is None else json.loads(Path(training.deepspeed).read_text()),
    }


def _callbacks(settings: Settings) -> list[Any]:
    found: list[Any] = [Progress(settings.output.disable_tqdm)]
    if "jsonl" in settings.output.report_to:
        found.append(JsonLines(Path(settings.output.output_dir) / "log.jsonl"))
    return found
