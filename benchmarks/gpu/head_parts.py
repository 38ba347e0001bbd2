"""Items 3 and 4 of the list: the heads of three models at 4k, 16k and 32k scored tokens, ours and peers in one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cases import shape_of
from benchmarks.parts import Part, python
from benchmarks.providers import PROVIDERS
from benchmarks.records import Record, command_of
from benchmarks.report.results import ENVIRONMENT

MODELS = ("llama3-8b", "qwen2.5-7b", "gemma2-2b")
LARGEST, OTHERS = (32768,), (16384, 4096)
PAIRS, DTYPE, KIND = 4, "bf16", "trained"
OURS = "triton"
# what is the same as another where nothing is masked, or is meant for machines without a GPU
LEFT_OUT = ("torch.compile-scored", "cut-ce-compile")
SPARSE = ("certified, block 2 %", "unbiased, 2^-8", "unbiased, 2^-7")  # of bench_sparse


class Heads(NamedTuple):
    """A run of heads.py."""

    model: str
    mode: str
    tokens: tuple[int, ...]
    compiled: bool  # with those that torch.compile makes, which takes a while for each size
    seconds: float
    item: int = 3


def runs(model: str) -> list[Heads]:
    return [
        Heads(model, "step", LARGEST, True, 110.0, 4),
        Heads(model, "step", OTHERS, False, 60.0),
        Heads(model, "frozen", LARGEST + OTHERS, False, 60.0),
        Heads(model, "forward", LARGEST + OTHERS, False, 50.0),
    ]


def part(heads: Heads, folder: Path, facts: Mapping[str, Any]) -> Part:
    sizes = " ".join(f"{count // 1024}k" for count in heads.tokens)
    name = f"head: {heads.model} {heads.mode} {sizes}{', compiled too' if heads.compiled else ''}"
    save = folder / f"head-{heads.model}-{heads.mode}-{sizes.replace(' ', '-')}.jsonl"
    more = tuple(
        map(str, (
            "--model", heads.model, "--mode", heads.mode, "--pairs", PAIRS, "--dtype", DTYPE, "--kind", KIND,
            "--providers", *providers(compiled=heads.compiled), "--rounds", 5, "--warmup", 0.3, "--save", save,
        ))
    )  # fmt: skip
    command = python("-m", "benchmarks.gpu.heads", "--tokens", *heads.tokens, "--", *more)
    owes = tuple(_owed(heads, tokens, more, facts) for tokens in heads.tokens)
    return Part(name=name, item=heads.item, command=command, seconds=heads.seconds, save=save, owes=owes)


def providers(*, compiled: bool) -> list[str]:
    """Ours by its kernels for a GPU, and every peer; of each that cannot run here the reason is reported."""
    peers = [name for name, who in PROVIDERS.items() if not who.ours and name not in LEFT_OUT]
    return [OURS, *(name for name in peers if compiled or not PROVIDERS[name].compiled)]


def sparse() -> Iterator[Part]:
    """What it prints stays in its log: its rows are of another kind than the records."""
    command = python(
        "-m", "benchmarks.bench_sparse", "--shapes", "4096x128256", "--tokens", LARGEST[0], "--entropies", 1.0, 2.0,
        "--rounds", 3, "--ways", *SPARSE,
    )  # fmt: skip
    yield Part(name="head: sparse gradients", item=3, command=command, seconds=100.0)


def _owed(heads: Heads, tokens: int, more: tuple[str, ...], facts: Mapping[str, Any]) -> Record:
    """Under the command that bench_head itself would name, so that a later run takes its place."""
    D, V, softcap = shape_of(heads.model)
    command = command_of("bench_head", ("--tokens", str(tokens), *more))
    return Record(
        **{name: facts[name] for name in ENVIRONMENT}, command=command, bench="head", provider=OURS, state="missing",
        reason="not run", model=heads.model, D=D, V=V, softcap=softcap, tokens=tokens, pairs=PAIRS, masked=0.0,
        dtype=DTYPE, kind=KIND, mode=heads.mode,
    )  # fmt: skip
