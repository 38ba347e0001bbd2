"""A small language model, and its exact distribution over a language."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expo_kernels import sequence_logprob
from expo_kernels.layout import from_padded
from toy.language import Language


def small_lm(words: PreTrainedTokenizerFast, *, width: int = 64, layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False,
        pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def hidden_states(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """ids [S, T] -> [S, T - 1, D], of all positions that predict something."""
    return model.model(input_ids=ids).last_hidden_state[:, :-1]


@torch.no_grad()
def distribution(model: LlamaForCausalLM, language: Language) -> Tensor:
    """[X, Y + 1]: the probability of every response, and of everything else a model may say."""
    ids, labels = language.tokens
    X, Y, _ = ids.shape
    batch = from_padded(labels.flatten(0, 1), roles=1)
    logp = sequence_logprob(hidden_states(model, ids.flatten(0, 1)), model.lm_head.weight, batch)
    p = logp.double().exp().view(X, Y)
    return torch.cat([p, (1.0 - p.sum(1, keepdim=True)).clamp(min=0.0)], 1)
