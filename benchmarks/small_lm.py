"""The workload "lm": hidden states, head and labels of the small language model of toy/, trained in seconds."""

from __future__ import annotations

import functools
import string
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import HeadCase

if TYPE_CHECKING:  # toy wants transformers, which the other workloads do without
    from transformers import LlamaForCausalLM

    from toy.language import Language

STEPS, BATCH = 100, 128
SHARPNESS = 2.0  # of the corpus: some words are common, most are rare


class Trained(NamedTuple):
    model: LlamaForCausalLM
    language: Language
    corpus: Tensor  # [X, Y] the distribution of the text over the language's words


@functools.cache
def trained(seed: int) -> Trained:
    from toy.language import Language
    from toy.model import small_lm
    from toy.task import draw_words

    language = Language(letters=string.ascii_lowercase, longest=2)
    corpus = torch.softmax(SHARPNESS * language.features(seed), -1)
    tokens, labels = language.tokens
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is twenty times slower where threads wait for each other
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            model = small_lm(language.tokenizer, seed=seed)
            optimizer, random = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(seed)
            for _ in range(STEPS):
                words = draw_words(corpus, BATCH, random)
                logits = model(input_ids=tokens[words.prompt, words.response][:, :-1]).logits
                wanted = labels[words.prompt, words.response]
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return Trained(model, language, corpus)


@torch.no_grad()
def language_case(N: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> HeadCase:
    """The first N scored positions of words drawn from the corpus; D and V are the model's."""
    from toy.model import hidden_states
    from toy.task import draw_words

    model, language, corpus = trained(seed)
    words = draw_words(corpus, N, torch.Generator().manual_seed(seed + 1))  # each has a scored position at least
    ids, labels = (tokens[words.prompt, words.response] for tokens in language.tokens)
    scored = labels != -100
    enough = int((scored.sum(1).cumsum(0) < N).sum()) + 1
    h = hidden_states(model, ids[:enough])[scored[:enough]][:N]
    return HeadCase(h.to(dtype), model.lm_head.weight.detach().to(dtype), labels[:enough][scored[:enough]][:N])
