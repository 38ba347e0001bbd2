"""Well-known models as Hugging Face configs that stand here: nothing is downloaded."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from transformers import (
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from train.memory import Shape

SUFFIX = "-shape"  # of a hub name that stands for its numbers alone


class Model(NamedTuple):
    kind: type[PretrainedConfig]
    hub: str
    numbers: dict[str, Any]


def _numbers(V: int, D: int, layers: int, heads: int, intermediate: int, **others: Any) -> dict[str, Any]:
    return {
        "vocab_size": V, "hidden_size": D, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": intermediate, "tie_word_embeddings": False, **others,
    }  # fmt: skip


MODELS = {
    "llama3-8b": Model(
        LlamaConfig, "meta-llama/Meta-Llama-3-8B", _numbers(128256, 4096, 32, 32, 14336, num_key_value_heads=8)
    ),
    "llama3-70b": Model(
        LlamaConfig, "meta-llama/Meta-Llama-3-70B", _numbers(128256, 8192, 80, 64, 28672, num_key_value_heads=8)
    ),
    "qwen2.5-7b": Model(
        Qwen2Config, "Qwen/Qwen2.5-7B", _numbers(152064, 3584, 28, 28, 18944, num_key_value_heads=4)
    ),
    "mistral-7b": Model(
        MistralConfig, "mistralai/Mistral-7B-v0.3",
        _numbers(32768, 4096, 32, 32, 14336, num_key_value_heads=8, sliding_window=None),
    ),
    "gemma2-2b": Model(
        Gemma2Config, "google/gemma-2-2b",
        _numbers(256000, 2304, 26, 8, 9216, num_key_value_heads=4, head_dim=256) | {"tie_word_embeddings": True},
    ),
    "pythia-2.8b": Model(GPTNeoXConfig, "EleutherAI/pythia-2.8b", _numbers(50304, 2560, 32, 32, 10240)),
    "small": Model(LlamaConfig, "small", _numbers(32000, 512, 4, 8, 1408, num_key_value_heads=4)),
}  # fmt: skip


def canonical(name: str) -> str:
    """A name of MODELS, or the one that the hub has for it, with or without -shape; case does not matter."""
    asked = name.lower().removesuffix(SUFFIX)
    for known, model in MODELS.items():
        if asked in (known, model.hub.lower()):
            return known
    there = ", ".join(f"{known} ({model.hub})" if known != model.hub else known for known, model in MODELS.items())
    raise ValueError(f"model: want one of {there}, got {name!r}")


def config(name: str, layers: int | None = None) -> PretrainedConfig:
    """Of a canonical name; with another number of layers where one is asked for."""
    model = MODELS[name]
    given = model.numbers if layers is None else {**model.numbers, "num_hidden_layers": layers}
    return model.kind(**given)


@functools.cache
def shape(name: str) -> Shape:
    return Shape.of(config(name))
