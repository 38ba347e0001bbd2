"""The training loop: transformers.Trainer with our batches, our loss in the model's head, and our divisors.

A step: the ranks count their groups, anchors and tokens -> one all-reduce makes the step's divisors -> every
micro-batch's loss is its part of the step's mean -> gradients add up over micro-batches and ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from expo_kernels.head import Scoring, check_head
from expo_kernels.layout import default_divisors, empty_groups
from expo_kernels.types import Divisors, Execution, LossOutput
from train import checkpoints
from train.attention import Packing, check_packing
from train.batches import Collator, Corpus, MicroBatch
from train.held import give_back
from train.launch import barrier, rank, world
from train.loaders import Feed, evaluation_feed, training_feed
from train.metrics import Meter
from train.reference import score
from train.reference_point import reference_point
from train.resume import mend
from train.settings import Settings
from train.sparsity import sparsity_rule
from train.stage import Stage
from train.stopping import Stop


class PreferenceTrainer(Trainer):
    scoring: Callable[..., Any] = Scoring  # what the head is asked for; a benchmark asks for logits

    def __init__(
        self, model: nn.Module, args: TrainingArguments, *, settings: Settings, stage: Stage, packing: Packing,
        reference: str, frozen: nn.Module | None, corpus: Corpus, held_out: Corpus | None, collator: Collator,
        tokenizer: PreTrainedTokenizerBase, identity: dict[str, Any], callbacks: list[Any],
    ) -> None:  # fmt: skip
        """reference: a kind of train/reference.py; frozen: its model, where it is "engine"."""
        self.settings, self.stage, self.packing, self.identity = settings, stage, packing, identity
        self.reference, self.frozen = reference, frozen
        evaluation = None if held_out is None else evaluation_feed(settings, held_out)
        self.feeds = (training_feed(settings, corpus, packing.shared_prompts), evaluation)
        super().__init__(
            model=model, args=args, data_collator=collator, train_dataset=corpus,  # type: ignore[arg-type]
            eval_dataset=held_out, processing_class=tokenizer, callbacks=callbacks,
        )  # fmt: skip
        self.loss_is_scaled_for_ga = True
        self.execution = Execution(backend=settings.model.backend, workspace_bytes=settings.model.workspace_mb << 20)
        window = args.gradient_accumulation_steps * max(int(args.logging_steps), 1)
        self.meter = Meter(stage.name, window * self.feeds[0].order.most, args.device)
        self.point: Tensor | None = None  # KTO's, of this step
        self.stop, self.stopping = Stop(), False
        self.unchecked: list[tuple[tuple[str, ...], Tensor, Tensor]] = []  # of this step: ids, losses [P], their sum
        self.parameter_count = sum(getattr(p, "ds_numel", 0) or p.numel() for p in model.parameters())
        self.output = Path(settings.output.output_dir)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Around(self))

    # data

    def get_train_dataloader(self) -> DataLoader:
        return self._loader(self.feeds[0])

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        assert self.feeds[1] is not None, "asked for where there is data to evaluate on"
        return self._loader(self.feeds[1])

    def _loader(self, feed: Feed) -> DataLoader:
        collator = cast(Collator, self.data_collator)
        return feed.loader(collator, self.args.dataloader_num_workers, self.args.device.type == "cuda")

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Six for each parameter and token."""
        return 6 * inputs.tokens * self.parameter_count

    def is_done(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is of the last step."""
        steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] >= steps

    @property
    def evaluated(self) -> bool:
        """Whether the model that stands has been: at the last step, and no better one was loaded since."""
        step, best = self.state.global_step, self.args.load_best_model_at_end
        return not best and any(row["step"] == step and "eval_loss" in row for row in self.state.log_history)

    # the loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Of the whole step, over micro-batches and ranks, as the divisor of one rank's share: ranks are averaged."""
        own = torch.tensor([_counts(micro) for micro in batch_samples], dtype=torch.float32).sum(0).to(device)
        if world() > 1:
            dist.all_reduce(own)
        groups, anchors, tokens = own.clamp(min=1.0) / world()
        self.point = self._step_point(batch_samples, device) if self.stage.point else None
        return Divisors(groups=groups, anchors=anchors, tokens=tokens)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        out, reference = self._forward(model, inputs, num_items_in_batch)
        self.unchecked.append((inputs.ids, out.terms.loss, out.loss.detach()))
        if self.accelerator.gradient_state.sync_gradients:
            self._agree()
        self.meter.add(inputs, out, reference)
        loss = out.loss * 1.0  # DeepSpeed's stage 0 divides what a model itself returns by the accumulation steps
        return (loss, out) if return_outputs else loss

    def _forward(self, model: nn.Module, micro: MicroBatch, divisors: Divisors) -> tuple[LossOutput, Tensor | None]:
        reference = self._reference(model, micro)
        columns = dict(micro.columns)
        if self.point is not None:
            columns["reference_point"] = self.point.expand(micro.batch.host.groups)
        watched = ("entropy", "is_argmax") if not torch.is_grad_enabled() or self.settings.output.token_stats else ()
        scoring = type(self).scoring(
            batch=micro.batch, objective=self.stage.objective, reference=reference, columns=columns, divisor=divisors,
            execution=self._execution(), stats=watched, router_weight=self._router_weight(),
        )  # fmt: skip
        return model(**self.packing.model_inputs(micro.inputs), scoring=scoring), reference

    def _execution(self) -> Execution:
        """Columns are drawn anew for each micro-batch of each rank, and the same ones by a run that is resumed."""
        rule = sparsity_rule(self.settings, self.state.global_step, len(self.unchecked), rank())
        return dataclasses.replace(self.execution, sparsity=rule)

    def _router_weight(self) -> float:
        """A mean over the step's micro-batches, and over ranks; in training."""
        asked = self.settings.model.router_aux_loss_coef
        return asked / self.current_gradient_accumulation_steps if asked and torch.is_grad_enabled() else 0.0

    def _reference(self, model: nn.Module, micro: MicroBatch) -> Tensor | None:
        if self.reference == "none":
            return None
        if self.reference == "cache":
            return micro.reference
        if self.reference == "engine":
            assert self.frozen is not None, "made with the trainer"
            return self._score(self.frozen, micro)
        with self._adapter_off():
            return self._score(model, micro)

    def _score(self, model: nn.Module, micro: MicroBatch) -> Tensor:
        return score(model, micro, self.packing, self.execution)

    def _adapter_off(self) -> contextlib.AbstractContextManager[Any]:
        return self.accelerator.unwrap_model(self.model).disable_adapter()

    def _step_point(self, micros: list[Any], device: torch.device) -> Tensor:
        model = self.model_wrapped
        moved = [micro.to(device) for micro in micros]
        return reference_point(moved, self.stage.point, partial(self._reference, model), partial(self._score, model))

    def _agree(self) -> None:
        """At the step's last micro-batch, before any weight has changed: the ranks tell each other whether a loss was
        not finite, or whether one was asked to stop."""
        bad = ~torch.stack([loss for _, _, loss in self.unchecked]).isfinite().all()
        flags = torch.stack([bad.float(), bad.new_tensor(self.stop.wished).float()])
        if world() > 1:
            dist.all_reduce(flags)
        not_finite, self.stopping = (flags > 0).tolist()
        if not_finite:
            self._refuse_step()
        self.unchecked.clear()

    def _refuse_step(self) -> None:
        """All ranks stop together, and each writes down whose loss it was."""
        ids = [name for group, terms, loss in self.unchecked for name in _not_finite(group, terms, loss)]
        path = checkpoints.write_not_finite(self.output, rank(), self.state.global_step, ids)
        barrier()
        raise FloatingPointError(
            f"the loss of step {self.state.global_step + 1} is not finite; no weight has been changed by it. "
            f"Examples: {ids or 'on other ranks'} ({path})"
        )

    # watching

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.meter.read()
            self.state.num_input_tokens_seen = self.meter.tokens
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:  # fmt: skip
        """Every example once, whatever the ranks: the last micro-batches may be short or empty."""
        corpus: Corpus = dataloader.dataset  # type: ignore[assignment]
        model, device = self.model_wrapped, self.args.device
        assert self.feeds[1] is not None, "the loader is of it"
        meter = Meter(self.stage.name, len(dataloader) * self.feeds[1].order.most, device)
        tokens = sum(len(responses[0]) for responses in corpus.groups["responses"])
        divisors = Divisors(groups=float(len(corpus)), anchors=1.0, tokens=float(tokens))
        total, begun = torch.zeros((), dtype=torch.float64, device=device), time.perf_counter()
        model.eval()
        with torch.no_grad():
            for micro in dataloader:
                if self.stage.point:
                    self.point = self._step_point([micro], device)
                micro = micro.to(device)
                out, reference = self._forward(model, micro, divisors)
                meter.add(micro, out, reference)
                total += out.loss.double()
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if world() > 1:
            dist.all_reduce(total)
        found = {"loss": float(total), **meter.read()}
        self.meter.since += time.perf_counter() - begun  # the next tokens a second are of training
        metrics = {sys.intern(f"{metric_key_prefix}_{name}"): value for name, value in found.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(corpus))  # type: ignore[arg-type]

    # checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer writes into a folder aside; what stands under checkpoint-N is whole."""
        output, name = self.output, f"checkpoint-{self.state.global_step}"
        aside = output / checkpoints.PARTIAL
        if rank() == 0:
            checkpoints.clear(aside)
        barrier()
        best = self.state.best_model_checkpoint
        if self.state.best_global_step == self.state.global_step:
            best = str(output / name)
        self.args.output_dir = str(aside)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(output)
        self.state.best_model_checkpoint = best
        barrier()
        if rank() == 0:
            self.state.save_to_json(str(aside / name / "trainer_state.json"))
            checkpoints.write_identity(aside / name, self.identity)
            checkpoints.settle(aside / name, output / name)
            checkpoints.rotate(output, self.settings.output.save_total_limit, None if best is None else Path(best))
        give_back()
        barrier()


class _Around(TrainerCallback):
    """What stands around the steps. Before the first one the model is what is called in training, sharded, adapted and
    under autocast; on resume the Trainer's state has the old run's intervals, and its count of tokens."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.stop.listen()
        engine: Any = self.trainer.model_wrapped
        config = getattr(engine, "config", None)  # DeepSpeed's, where that is the engine
        if isinstance(config, dict) and config.get("checkpoint", {}).get("load_universal"):
            mend(engine.optimizer.optimizer, args.weight_decay)
        state.compute_steps(args, state.max_steps)
        self.trainer.meter.tokens = int(state.num_input_tokens_seen)
        model = self.trainer.model
        vocabulary = self.trainer.accelerator.unwrap_model(model).config.get_text_config().vocab_size
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        check_head(self.trainer.model_wrapped, vocabulary, args.device, dtype)
        check_packing(self.trainer.model_wrapped, self.trainer.packing, vocabulary, args.device, dtype)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self.trainer.stopping:
            control.should_save = control.should_training_stop = True


def _not_finite(ids: tuple[str, ...], losses: Tensor, loss: Tensor) -> list[str]:
    """The groups; all of them where it is an anchor."""
    found = [name for name, fine in zip(ids, losses.isfinite().tolist(), strict=True) if not fine]
    return found or ([] if bool(loss.isfinite()) else list(ids))


def _counts(micro: MicroBatch) -> list[float]:
    """Active groups, anchors, tokens of the first role's responses; nothing where there is nothing."""
    host = micro.batch.host
    counted = default_divisors(host)
    groups = host.groups - empty_groups(host)
    anchors = sum(1 for n in host.lengths[host.grouped_sequences : host.grouped_sequences + host.anchors] if n)
    return [float(groups), float(anchors), float(counted.tokens) if groups else 0.0]
