"""Real text for a small language model: Python's own library, which every machine that runs this has.

Tokens are byte-level BPE, learned from the text; the first part of each file's tokens is trained on, the rest held out.
"""

from __future__ import annotations

import functools
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from expo_kernels.head import attach

BYTES = 2 << 20  # of text
HELD_OUT = 0.1


class Text(NamedTuple):
    train: Tensor  # [tokens]
    held_out: Tensor  # [tokens]
    V: int


@functools.cache
def text(V: int) -> Text:
    folder = Path(sysconfig.get_paths()["stdlib"])
    files, size = [], 0
    for path in sorted(folder.glob("*.py")):
        if size < BYTES:
            files.append(path.read_text(encoding="utf-8", errors="replace"))
            size += len(files[-1])
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(files, vocab_size=V, min_frequency=2, show_progress=False)
    ids = [torch.tensor(words.encode(file).ids) for file in files]
    cut = [int(len(x) * (1 - HELD_OUT)) for x in ids]
    train = torch.cat([x[:n] for x, n in zip(ids, cut, strict=True)])
    return Text(train, torch.cat([x[n:] for x, n in zip(ids, cut, strict=True)]), V)


def windows(tokens: Tensor, count: int, length: int, random: torch.Generator) -> Tensor:
    """-> [count, length], each from anywhere."""
    first = torch.randint(len(tokens) - length, (count,), generator=random)
    return tokens[first[:, None] + torch.arange(length)]


def model(V: int, width: int, seed: int) -> LlamaForCausalLM:
    """Two layers, its head ready for the fused loss."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    attach(made)
    return made
