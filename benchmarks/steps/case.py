"""What bench_step trains on: a model of random weights and pairs of mixed lengths, read by the trainer's own ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from train.arguments import parse
from train.attention import Packing, choose
from train.batches import Collator, Corpus
from train.data import TokenOptions, prepare
from train.layouts import Layout
from train.order import StepOrder
from train.policy import load_tokenizer, pad_id
from train.reference import Table
from train.settings import Settings
from train.stage import Stage, stage_of

BETA = 0.1
PROMPT, RESPONSE, SPREAD = 1 / 16, 1 / 8, 0.7  # lengths are log-normal; their medians, as shares of the longest
SPECIAL = ("<pad>", "<eos>", "<unk>")


class Body(NamedTuple):
    """A Llama without its vocabulary."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int


MODELS = {
    "llama3-8b": Body(4096, 2, 32, 8, 14336),  # two of its 32 layers
    "llama3.2-1b": Body(2048, 16, 32, 8, 8192),
    "small": Body(512, 4, 8, 4, 1408),
    "tiny": Body(64, 2, 4, 2, 128),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    model: str
    vocabulary: int
    pairs: int  # of a step
    longest: int  # tokens of prompt and response
    dtype: str
    workspace_mb: int
    total: int  # steps
    seed: int = 0


class Inputs(NamedTuple):
    settings: Settings
    stage: Stage
    tokenizer: PreTrainedTokenizerBase
    corpus: Corpus  # with the reference's log-probs
    collator: Collator
    packing: Packing


def write(case: Case, folder: Path) -> None:
    body, V = MODELS[case.model], case.vocabulary
    torch.manual_seed(case.seed)
    config = LlamaConfig(
        vocab_size=V, hidden_size=body.hidden, intermediate_size=body.intermediate, num_hidden_layers=body.layers,
        num_attention_heads=body.heads, num_key_value_heads=body.kv_heads, max_position_embeddings=case.longest,
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    words = {word: i for i, word in enumerate((*SPECIAL, *map(str, range(len(SPECIAL), V))))}  # a token a word
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    named.save_pretrained(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _pairs(case)))


def _pairs(case: Case) -> Iterator[dict[str, str]]:
    random = torch.Generator().manual_seed(case.seed)

    def length(median: float, most: int) -> int:
        return min(max(round(median * float((SPREAD * torch.randn((), generator=random)).exp())), 1), most)

    def text(n: int) -> str:
        return "".join(f" {word}" for word in torch.randint(len(SPECIAL), case.vocabulary, (n,), generator=random))

    for _ in range(case.total * case.pairs):
        prompt = length(PROMPT * case.longest, case.longest // 2)
        room = case.longest - prompt - 1  # the end of text
        chosen, rejected = (length(RESPONSE * case.longest, room) for _ in range(2))
        yield {"prompt": text(prompt), "chosen": text(chosen), "rejected": text(rejected)}


def read(case: Case, folder: Path, output: Path) -> Inputs:
    """Tokens and reference log-probs (of the policy as it starts) are made by the first who asks and found after."""
    settings = _settings(case, folder, output)
    stage, tokenizer = stage_of(settings.make_objective()), load_tokenizer(settings)
    made = prepare(settings.data.train_data, stage.name, tokenizer, TokenOptions(max_length=case.longest), folder)
    corpus = Corpus(made.dataset, stage)
    if len(corpus) != case.total * case.pairs:
        raise ValueError(f"read: want {case.total * case.pairs} pairs, got {'; '.join(made.report.lines())}")
    collator = Collator(stage, corpus.roles, Layout(pad=pad_id(tokenizer)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packing = choose(settings.model, device)
    Table(folder / "reference", settings, stage, packing).fill([(corpus, made.fingerprint)], collator, device)
    return Inputs(settings, stage, tokenizer, corpus, collator, packing)


def _settings(case: Case, folder: Path, output: Path) -> Settings:
    keys = {
        "model": str(folder / "model"), "train_data": str(folder / "pairs.jsonl"), "max_length": case.longest,
        "bf16": case.dtype == "bf16", "workspace_mb": case.workspace_mb, "objective": "dpo",
        "objective_args": {"beta": BETA}, "reference": "cache", "reference_cache": str(folder / "reference"),
        "max_steps": case.total, "per_device_train_batch_size": case.pairs, "learning_rate": 1e-4,
        "lr_scheduler_type": "constant", "optim": "adamw_torch_fused", "seed": case.seed, "output_dir": str(output),
        "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    given = {key: value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()}
    return parse([part for key, value in given.items() for part in (f"--{key}", value)])


def order(case: Case, inputs: Inputs) -> list[int]:
    """The examples as this trainer meets them, for who has another order of its own."""
    steps = StepOrder(len(inputs.corpus), per_rank=case.pairs, seed=inputs.settings.training.seed)
    return [i for step in steps for i in step]
