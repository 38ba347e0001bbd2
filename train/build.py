"""From settings to a finished run, one step after the other."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from train import checkpoints, corpora, launch, reference, resume
from train.arguments import write_yaml
from train.attention import check_windows, choose
from train.batches import Collator
from train.dry_run import dry_run
from train.export import copy_final, save_final
from train.hf_arguments import training_arguments
from train.identity import identity_of
from train.launch import rank, say
from train.layouts import Layout
from train.metrics import metric_names
from train.policy import check_vocabulary, load_config, load_policy, load_tokenizer, pad_id
from train.settings import Settings
from train.stage import Stage, stage_of
from train.trainer import PreferenceTrainer
from train.watching import JsonLines, Progress


def run(settings: Settings) -> None:
    """Every rank calls it."""
    training = settings.training
    launch.start(deepspeed=training.deepspeed is not None, use_cpu=training.use_cpu, timeout=training.ddp_timeout)
    stage = stage_of(settings.make_objective())
    kind = reference.kind(settings, stage)
    _check(settings, stage)
    tokenizer, config = load_tokenizer(settings), load_config(settings.model)
    check_vocabulary(config, tokenizer)
    if settings.output.dry_run:
        dry_run(settings, stage, kind, config, tokenizer)
        return
    device = launch.device(training.use_cpu)
    packing = choose(settings.model, device)
    say(f"packing: {packing.kind} ({packing.why})")
    checkpoint = _claim(settings)
    output = Path(settings.output.output_dir)
    data = corpora.load(settings, stage, tokenizer, Path(settings.data.data_cache or output / "data"))
    identity = identity_of(settings, stage, data, kind)
    universal = checkpoint is not None and resume.check(checkpoint, identity, settings)
    _begin(settings, checkpoint)
    if universal and checkpoint is not None:
        resume.convert(checkpoint)
    args = training_arguments(settings, universal)  # before any model is loaded: ZeRO-3 shards what is loaded after
    corpora.show(data, tokenizer)
    divided = corpora.divide(settings, stage, data)
    corpus = divided.train
    check_windows(config, packing, corpus.longest)
    collator = Collator(stage, corpus.roles, Layout(packing.packed, packing.shared_prompts, pad_id(tokenizer)))
    if kind == "cache":
        folder = Path(settings.objective.reference_cache or output / "reference")
        reference.Table(folder, settings, stage, packing).fill(divided.named, collator, device)
    set_seed(training.seed)  # an adapter is drawn
    with contextlib.ExitStack() as kept:
        frozen = kept.enter_context(reference.frozen(settings, packing, device)) if kind == "engine" else None
        trainer = PreferenceTrainer(
            load_policy(settings.model, packing=packing, sharded=training.deepspeed is not None), args,
            settings=settings, stage=stage, packing=packing, reference=kind, frozen=frozen, corpus=corpus,
            held_out=divided.held_out, collator=collator, tokenizer=tokenizer, identity=identity,
            callbacks=_callbacks(settings),
        )  # fmt: skip
        _train(trainer, settings, tokenizer, checkpoint)


def _train(
    trainer: PreferenceTrainer, settings: Settings, tokenizer: PreTrainedTokenizerBase, checkpoint: Path | None
) -> None:
    if checkpoint is not None and trainer.is_done(checkpoint):
        say(f"{checkpoint} is the end of its run: nothing is left to train")
        copy_final(checkpoint, Path(settings.output.output_dir))
        return
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.stopping and trainer.state.global_step < trainer.state.max_steps:
        step, steps = trainer.state.global_step, trainer.state.max_steps
        say(f"stopped by a signal after step {step} of {steps}; resume_from_checkpoint: auto goes on from there")
        return
    save_final(trainer, settings, tokenizer)  # before the last evaluation, which may fail
    if trainer.eval_dataset is not None and not trainer.evaluated:
        trainer.evaluate()
    if trainer.state.best_model_checkpoint is not None:
        say(f"best: {trainer.state.best_model_checkpoint}, {_metric(settings)} {trainer.state.best_metric:.5g}")
    trainer.save_state()


def _metric(settings: Settings) -> str:
    return settings.output.metric_for_best_model or "loss"


def _check(settings: Settings, stage: Stage) -> None:
    name, own = settings.objective.objective, settings.data.anchor_data
    if stage.anchors and not own:
        raise ValueError(f"anchor_data: {name} averages over samples of the reference; want a file of them, got none")
    if own and not stage.anchors:
        raise ValueError(f"anchor_data: {name} takes none; expo_comp does with objective_args samples: anchors")
    if "wandb" in settings.output.report_to and importlib.util.find_spec("wandb") is None:
        raise ValueError("report_to: want wandb installed for wandb, got none (pip install wandb)")
    known = metric_names(stage)
    if _metric(settings).removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model: want one of {', '.join(known)}, got {_metric(settings)!r}")
    if settings.training.deepspeed is not None:
        zero = json.loads(Path(settings.training.deepspeed).read_text()).get("zero_optimization", {})
        if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise ValueError(
                "deepspeed: want stage3_gather_16bit_weights_on_model_save true with stage 3, or no whole model would "
                f"be saved, got {zero.get('stage3_gather_16bit_weights_on_model_save')}"
            )


def _claim(settings: Settings) -> Path | None:
    """-> the checkpoint to go on from. One rank looks, so all see the same."""
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found = [_checkpoint(settings), None]
        except (OSError, ValueError) as error:
            found = [None, error]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found)
    checkpoint, refused = found
    if refused is not None:
        raise refused
    return checkpoint


def _checkpoint(settings: Settings) -> Path | None:
    output, asked = Path(settings.output.output_dir), settings.output.resume_from_checkpoint
    auto = asked == "auto"
    found = checkpoints.newest(output) if auto else None if asked is None else Path(asked)
    if found is not None and not (found / "trainer_state.json").is_file():
        raise ValueError(f"resume_from_checkpoint: want a checkpoint's folder or auto, got {asked}")
    if found is not None and not checkpoints.has_optimizer(found):
        raise ValueError(f"resume_from_checkpoint: want the optimizer's state too, {found} is of save_only_model: true")
    aside = checkpoints.claim(output, resume=found, auto=auto, overwrite=settings.output.overwrite_output_dir)
    if aside is not None:
        say(f"output_dir: the run that was in {output} is now in {aside}")
    if auto and found is None:
        say(f"resume_from_checkpoint: no checkpoint in {output}, so the run starts anew")
    return found


def _begin(settings: Settings, checkpoint: Path | None) -> None:
    """What a run leaves before its first step, once nothing speaks against it."""
    output = Path(settings.output.output_dir)
    if rank() == 0:
        if checkpoint is not None and checkpoint.resolve().parent == output.resolve():
            for moved in checkpoints.set_later_aside(checkpoint):
                say(f"a checkpoint after {checkpoint.name} is now {moved.name}")
        write_yaml(settings, output / "settings.yaml")
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")


def _callbacks(settings: Settings) -> list[Any]:
    found: list[Any] = [Progress(settings.output.disable_tqdm)]
    if "jsonl" in settings.output.report_to:
        found.append(JsonLines(Path(settings.output.output_dir) / "log.jsonl"))
    return found
