"""Who bench_step measures: this trainer with heads of several kinds, and TRL's, each as its user would start it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import Trainer

from benchmarks.steps import case as step_case
from benchmarks.steps.case import BETA, Case
from expo_kernels.head import Scoring
from expo_kernels.layout import default_divisors
from expo_kernels.types import Divisors, HeadOptions, LossOutput, LossTerms, SequenceLogprobs
from train import launch
from train.hf_arguments import training_arguments
from train.policy import load_policy
from train.trainer import PreferenceTrainer

Provider = Callable[[Case, Path, Path], Trainer]  # the case's inputs, and the provider's own folder


def token_logprob(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """hidden [M, D], weight [V, D], labels [M] -> [M], by way of all logits, in fp32 for the softmax."""
    logits = torch.nn.functional.linear(hidden, weight).float()
    return logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]


_compiled = torch.compile(token_logprob)


class NaiveScoring(Scoring):
    """What one writes without a library: logits of all positions, masked after. No response is empty here."""

    scored_only: ClassVar[bool] = False

    def logprob(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return token_logprob(hidden, weight, labels)

    def __call__(self, hidden: Tensor, weight: Tensor, head: HeadOptions) -> LossOutput:
        if head.bias is not None or head.softcap is not None or head.logit_scale != 1.0 or self.stats:
            raise ValueError(f"NaiveScoring: want a plain head and no stats, got {head} and {self.stats}")
        rows, labels, (S, T) = self.batch.rows, self.batch.labels, hidden.shape[:2]
        flat = hidden.flatten(0, 1)
        if self.scored_only:
            logp = self.logprob(flat[rows], weight, labels)
            return self._output(logp.new_zeros(S).index_add(0, self.batch.segments, logp))
        logp = self.logprob(flat, weight, labels.new_zeros(S * T).index_copy(0, rows, labels))
        mask = logp.new_zeros(S * T).index_fill(0, rows, 1.0)
        return self._output((logp * mask).view(S, T).sum(1))

    def _output(self, seq: Tensor) -> LossOutput:
        """seq [S] -> the loss, by autograd, and what the trainer watches."""
        batch, divisor = self.batch, self.divisor
        assert self.objective is not None and self.reference is not None and isinstance(divisor, Divisors), "DPO"
        grouped, counts = (batch.host.roles, batch.host.groups), default_divisors(batch.host)
        lengths = batch.lengths.view(grouped)  # [K, P]
        terms = self.objective(
            SequenceLogprobs(
                seq.view(grouped), lengths.to(seq.dtype), self.reference.view(grouped), {}, counts, (lengths > 0).all(0)
            )
        )
        margin = None if terms.margin is None else terms.margin.detach()
        watched = LossTerms(terms.loss.detach(), margin, terms.coefficients.detach().flatten())
        loss = terms.loss.sum() / (counts.groups if divisor.groups is None else divisor.groups)
        return LossOutput(loss, seq.detach(), batch.lengths, terms.rewards.detach().flatten(), watched, 0, {}, None)


class CompiledScoring(NaiveScoring):
    def logprob(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """One graph for any number of rows, the first step's too."""
        for rows in (hidden, labels):
            torch._dynamo.maybe_mark_dynamic(rows, 0)
        return _compiled(hidden, weight, labels)


class CompiledScoredScoring(CompiledScoring):
    """For who also thinks of leaving prompts and padding out."""

    scored_only = True


class NaiveTrainer(PreferenceTrainer):
    scoring = NaiveScoring


class CompiledTrainer(PreferenceTrainer):
    scoring = CompiledScoring


class CompiledScoredTrainer(PreferenceTrainer):
    scoring = CompiledScoredScoring


def this_trainer(case: Case, folder: Path, output: Path, *, kind: type[PreferenceTrainer]) -> Trainer:
    launch.start(deepspeed=False, use_cpu=not torch.cuda.is_available(), timeout=1800)
    given = step_case.read(case, folder, output)
    args = training_arguments(given.settings)
    return kind(
        load_policy(given.settings.model, packing=given.packing, sharded=False), args, settings=given.settings,
        stage=given.stage, packing=given.packing, reference="cache", frozen=None, corpus=given.corpus, held_out=None,
        collator=given.collator, tokenizer=given.tokenizer, identity={}, callbacks=[],
    )  # fmt: skip


SHARED = (
    "output_dir", "max_steps", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "optim",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "use_cpu", "logging_steps",
    "logging_first_step", "report_to", "disable_tqdm", "save_strategy", "seed",
)  # fmt: skip


def trl(case: Case, folder: Path, output: Path) -> Trainer:
    """The same text in this trainer's order, through TRL's own tokenising and batches."""
    import datasets
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    class Known(DPOTrainer):
        """With the reference log-probs that all are given, in place of a pass of its own over the data."""

        def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
            return dataset

    given = step_case.read(case, folder, output)
    args = training_arguments(given.settings)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    known = given.corpus.reference
    assert known is not None, "read fills it in"
    ordered = [
        {**rows[i], "ref_chosen_logps": float(known[i, 0]), "ref_rejected_logps": float(known[i, 1])}
        for i in step_case.order(case, given)
    ]
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation=given.settings.model.attn_implementation
    )
    config = DPOConfig(
        **{name: getattr(args, name) for name in SHARED}, beta=BETA, max_length=case.longest,
        precompute_ref_log_probs=True, train_sampling_strategy="sequential", gradient_checkpointing=False,
    )  # fmt: skip
    return Known(
        model, args=config, train_dataset=datasets.Dataset.from_list(ordered), processing_class=given.tokenizer
    )


PROVIDERS: dict[str, Provider] = {
    "ours": partial(this_trainer, kind=PreferenceTrainer),
    "naive": partial(this_trainer, kind=NaiveTrainer),
    "compiled": partial(this_trainer, kind=CompiledTrainer),
    "compiled-scored": partial(this_trainer, kind=CompiledScoredTrainer),
    "trl": trl,
}
