"""Real text for a small language model, which every machine that runs this has: a part of Python's own library, or
"code": the models of the installed transformers, which say most of what they say more than once, so that a small model
comes to know what follows, and behind them some of the library, up to a size.

Tokens are byte-level BPE, learned from the text; the first part of each file's tokens is trained on, the rest held out.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from expo_kernels.head import attach

BYTES = {"library": 2 << 20, "code": 28 << 20}  # of text
HELD_OUT = 0.1


FILE = "text.json"  # beside a model: what it was trained on


class Text(NamedTuple):
    train: Tensor  # [tokens]
    held_out: Tensor  # [tokens]
    V: int

    def share_rarer_than(self, probability: float) -> float:
        """Of the text, the words that are."""
        frequencies = torch.bincount(self.train, minlength=self.V).double() / len(self.train)
        return float(frequencies[frequencies < probability].sum())


@functools.cache
def text(V: int, source: str = "library") -> Text:
    files = read_files(source)
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(files, vocab_size=V, min_frequency=2, show_progress=False)
    ids = [torch.tensor(words.encode(file).ids, dtype=torch.long) for file in files]
    cut = [int(len(x) * (1 - HELD_OUT)) for x in ids]
    train = torch.cat([x[:n] for x, n in zip(ids, cut, strict=True)])
    return Text(train, torch.cat([x[n:] for x, n in zip(ids, cut, strict=True)]), V)


def write_source(folder: Path, source: str, data: Text) -> None:
    """What the model in that folder knows: the tokens are whatever was installed here."""
    (folder / FILE).write_text(json.dumps({"source": source, "V": data.V, "sha256": _digest(data)}))


def text_beside(folder: Path) -> Text:
    """The text of the model in that folder, token for token, or ValueError."""
    if not (folder / FILE).is_file():
        raise ValueError(f"text_beside: want a folder that experiments.text_lm wrote, got {folder}")
    said = json.loads((folder / FILE).read_text())
    data = text(said["V"], said["source"])
    if _digest(data) != said["sha256"]:
        raise ValueError(f"text_beside: the model in {folder} was trained on other text than is installed here")
    return data


def _digest(data: Text) -> str:
    return hashlib.sha256(data.train.numpy().tobytes()).hexdigest()


def read_files(source: str) -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(library.glob("*.py"))
    if source == "code":
        inner = (path for path in library.rglob("*.py") if "site-packages" not in path.parts)
        paths = [*sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")), *sorted(inner)]
    files: list[str] = []
    size = 0
    for path in paths:
        if size < BYTES[source]:
            files.append(path.read_text(encoding="utf-8", errors="replace"))
            size += len(files[-1])
    return files


def shuffled(data: Text, seed: int) -> Text:
    """The same words in a random order: what stands before a word says nothing of it."""
    random = torch.Generator().manual_seed(seed)
    train, held_out = (x[torch.randperm(len(x), generator=random)] for x in data[:2])
    return Text(train, held_out, data.V)


def windows(tokens: Tensor, count: int, length: int, random: torch.Generator) -> Tensor:
    """-> [count, length], each from anywhere."""
    first = torch.randint(len(tokens) - length, (count,), generator=random)
    return tokens[first[:, None] + torch.arange(length)]


def model(V: int, width: int, seed: int, wide: int = 3, heads: int = 4) -> LlamaForCausalLM:
    """Two layers, its head ready for the fused loss; wide: the inner width of its feed-forward parts, in widths."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V, hidden_size=width, intermediate_size=wide * width, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    attach(made)
    return made
