"""The tokenizer and the model: loaded, dropout off, adapter and fused head attached, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from expo_kernels.head import attach
from train.attention import Packing
from train.launch import say
from train.settings import ModelSettings, Settings


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    model = settings.model
    tokenizer = AutoTokenizer.from_pretrained(
        model.tokenizer or model.model, revision=None if model.tokenizer else model.model_revision,
        trust_remote_code=model.trust_remote_code,
    )  # fmt: skip
    template = settings.data.chat_template
    if template is not None:
        tokenizer.chat_template = Path(template).read_text() if Path(template).is_file() else template
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer: want a padding or an end-of-text token, {tokenizer.name_or_path} has neither")
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token serves: what is padding is known from lengths."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def load_config(settings: ModelSettings) -> Any:
    return AutoConfig.from_pretrained(
        settings.model, revision=settings.model_revision, trust_remote_code=settings.trust_remote_code
    )


def check_vocabulary(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    V = config.get_text_config().vocab_size
    if len(tokenizer) > V:
        raise ValueError(
            f"model: want a head with a row for each of the tokenizer's {len(tokenizer)} tokens, got {V}; "
            "resize the model's embeddings and save it first"
        )


def load_model(settings: ModelSettings, path: str | None = None, *, packing: Packing, sharded: bool) -> PreTrainedModel:
    """With the fused head, without dropout. bf16 under DeepSpeed (`sharded`) is weights in bf16, with fp32 masters in
    the optimizer; elsewhere the weights stay fp32 and bf16 is autocast's."""
    own = path is None
    model = AutoModelForCausalLM.from_pretrained(
        settings.model if path is None else path,
        revision=settings.model_revision if own else None,
        trust_remote_code=settings.trust_remote_code,
        dtype=torch.bfloat16 if settings.bf16 and sharded else torch.float32,
        attn_implementation=packing.implementation,
    )
    model.config.use_cache = False
    switch_dropout_off(model)
    return attach(model)


def load_policy(settings: ModelSettings, *, packing: Packing, sharded: bool) -> nn.Module:
    """The model that is trained, in its adapter if one is asked for."""
    model = load_model(settings, packing=packing, sharded=sharded)
    return with_adapter(model, settings) if settings.lora_r else model


def with_adapter(model: PreTrainedModel, settings: ModelSettings) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    from expo_kernels.head import detach

    modules = settings.lora_target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # any number, whatever its annotation says
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if modules in (None, "all-linear") else list(modules or ()),
        modules_to_save=list(settings.lora_modules_to_save) if settings.lora_modules_to_save else None,
    )
    # DeepSpeed's bf16 has fp32 masters of its own, and wants what it trains in one dtype
    wrapped = get_peft_model(detach(model), config, autocast_adapter_dtype=model.dtype == torch.float32)
    attach(wrapped.get_base_model())  # type: ignore[arg-type]  # after peft: the head may have become a trained copy of itself
    return wrapped


def switch_dropout_off(model: nn.Module) -> None:
    """In modules and in the numbers that attention layers keep; the configuration stays as it was."""
    found = 0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            found += module.p > 0
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                found += 1
    if found:
        say(f"dropout switched off in {found} places")
