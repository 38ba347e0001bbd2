"""--dry_run: what the data look like and what a GPU would hold, before a model is loaded. Leaves nothing behind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from train import corpora, memory
from train.attention import choose
from train.batches import Collator, Corpus
from train.launch import say, world
from train.layouts import Layout
from train.policy import pad_id, with_adapter
from train.settings import Settings
from train.stage import Stage


def dry_run(settings: Settings, stage: Stage, reference: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = corpora.load(settings, stage, tokenizer, Path(settings.data.data_cache or folder))
        corpora.show(data, tokenizer)
        say(f"stage: {stage.name}; reference: {reference}; objective: {stage.objective}")
        corpus = corpora.divide(settings, stage, data).train
        shape = trained_shape(settings, config)
        estimate = memory.estimate(shape, _heaviest(settings, reference, corpus, tokenizer, shape.hidden))
        ranks, dtype = settings.output.dry_run_ranks or world(), "bf16" if settings.model.bf16 else "fp32"
        say("", f"expected memory of one of {ranks} ranks, {dtype}, its heaviest micro-batch; naive: with the logits")
        say(*memory.table(estimate))


def trained_shape(settings: Settings, config: Any) -> memory.Shape:
    trained = None
    if settings.model.lora_r:
        with torch.device("meta"):
            model = with_adapter(AutoModelForCausalLM.from_config(config), settings.model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return memory.Shape.of(config, trained=trained)


def memory_run(
    settings: Settings, hidden: int, sequences: int, length: int, scored: int, *, reference_engine: bool = False,
    ranks: int | None = None, packing: str = "padded",
) -> memory.Run:  # fmt: skip
    """A rank's run by the settings, on a micro-batch of so many sequences of that length, `scored` tokens of all."""
    training, zero = settings.training, _zero(settings)
    return memory.Run(
        ranks=ranks or settings.output.dry_run_ranks,
        stage=int(zero.get("stage", 0)),
        bf16=settings.model.bf16,
        offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        offload_param=zero.get("offload_param", {}).get("device", "none") != "none",
        checkpointing=settings.model.gradient_checkpointing,
        sequences=sequences,
        length=length,
        scored=min(scored, sequences * length),
        workspace_bytes=settings.model.workspace_mb << 20,
        reference_engine=reference_engine,
        optimizer_states=0 if training.optim == "sgd" else 2,
        eager=settings.model.attn_implementation == "eager",
        sdpa_mask=packing in ("padded", "mask") and settings.model.attn_implementation == "sdpa",
        buffer_bytes=_bucket(zero, hidden) * (2 if settings.model.bf16 else 4),
    )


def _heaviest(
    settings: Settings, reference: str, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, hidden: int
) -> memory.Run:
    """Of the heaviest micro-batch: the longest examples of the data come together."""
    training = settings.training
    packing = choose(settings.model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    lengths = corpus.lengths(packing.shared_prompts)
    longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-training.per_device_train_batch_size :]
    there = 0 if corpus.anchors is None else len(corpus.anchors)
    anchors = [len(corpus) + i % there for i in range(settings.data.per_device_anchors)]
    layout = Layout(packing.packed, packing.shared_prompts, pad_id(tokenizer))
    micro = Collator(corpus.stage, corpus.roles, layout)([corpus[i] for i in [*longest, *anchors]])
    sequences, length = micro.inputs.input_ids.shape
    return memory_run(
        settings, hidden, sequences, length if training.max_tokens is None else training.max_tokens,
        sum(micro.batch.host.lengths), reference_engine=reference == "engine",
        ranks=settings.output.dry_run_ranks or world(), packing=packing.kind,
    )  # fmt: skip


def _bucket(zero: dict[str, Any], hidden: int) -> int:
    """Numbers that the reduction of gradients holds at once: what "auto" is made of, or DeepSpeed's own default."""
    if not zero.get("stage"):
        return 0
    asked = zero.get("reduce_bucket_size", 500_000_000)
    return hidden * hidden if asked == "auto" else int(float(asked))


def _zero(settings: Settings) -> dict[str, Any]:
    if settings.training.deepspeed is None:
        return {}
    return json.loads(Path(settings.training.deepspeed).read_text()).get("zero_optimization", {})
