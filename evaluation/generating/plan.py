"""What a run of evaluation.generate does, all of it checked before a model is loaded."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation import files, responses
from evaluation.generating.checkpoint import Checkpoint, open_checkpoint
from evaluation.generating.hf_engine import Request
from evaluation.generating.prompts import (
    Codec,
    Prompt,
    Prompts,
    answer_of,
    read_prompts,
    read_template_args,
    template_digest,
)
from evaluation.generating.sampling import PRESETS, Sampling, row_seed
from evaluation.generating.vllm_engine import vllm_module
from evaluation.responses import Response
from train.data.sources import Source

ENGINES: Mapping[str, int] = {"hf": 16, "vllm": 1024}  # engine: responses of a batch


@dataclass(frozen=True, kw_only=True)
class Plan:
    checkpoint: Checkpoint
    sampling: Sampling
    codec: Codec
    prompts: list[Prompt]
    requests: list[Request]  # prompt by prompt, sample by sample
    kept: dict[tuple[str, int], Response]  # what --out has
    settings: Mapping[str, Any]  # as a line has them
    engine: str
    device: str
    batch_size: int
    seed: int
    out: Path
    anchors: Path | None
    answers: Path | None

    @property
    def missing(self) -> list[Request]:
        """The longest prompts first: they decide whether a batch fits, and a batch needs little padding."""
        left = [request for request in self.requests if (request.prompt.id, request.sample) not in self.kept]
        return sorted(left, key=lambda request: -len(request.ids))


def make_plan(args: argparse.Namespace) -> Plan:
    sampling, template_args = _sampling(args), read_template_args(args.chat_template_args)
    batch_size = _batch_size(args)
    _check_engine(args)
    found = _prompts(args)
    checkpoint, tokenizer = open_checkpoint(
        args.model, revision=args.revision, trust_remote_code=args.trust_remote_code, dtype=args.dtype,
        chat_template=args.chat_template,
    )  # fmt: skip
    codec = Codec(tokenizer, template_args)
    settings = {
        **sampling.settings(), "engine": args.engine, "dtype": checkpoint.dtype, "content": checkpoint.content,
        "template": template_digest(tokenizer, template_args),
    }  # fmt: skip
    return Plan(
        checkpoint=checkpoint, sampling=sampling, codec=codec, prompts=found.prompts,
        requests=_requests(found.prompts, codec, checkpoint, sampling, args.seed),
        kept=_kept(args.out, found.prompts, checkpoint.path, args.seed, settings), settings=settings,
        engine=args.engine, device=args.device, batch_size=batch_size, seed=args.seed, out=args.out,
        anchors=args.anchors, answers=args.answers,
    )  # fmt: skip


def _prompts(args: argparse.Namespace) -> Prompts:
    source = Source(
        path=args.prompts, split=args.split, name=args.subset, revision=args.prompts_revision, limit=args.limit
    )
    found = read_prompts(source, chat=args.chat)
    for cause, count in found.dropped.items():
        print(f"{source.label}: {count} rows left out: {cause}")
    if args.answers is not None:
        list(map(answer_of, found.prompts))
    return found


def _requests(
    prompts: Sequence[Prompt], codec: Codec, checkpoint: Checkpoint, sampling: Sampling, seed: int
) -> list[Request]:
    made = []
    for prompt in prompts:
        ids = codec.ids(prompt)
        if max(ids) >= checkpoint.vocabulary:
            raise ValueError(f"{prompt.where}: want tokens below the model's {checkpoint.vocabulary}, got {max(ids)}")
        if checkpoint.positions is not None and len(ids) + sampling.max_tokens > checkpoint.positions:
            raise ValueError(
                f"{prompt.where}: want prompt and max_tokens within the model's {checkpoint.positions} positions, got "
                f"{len(ids)} and {sampling.max_tokens}"
            )
        made += [Request(prompt, k, ids, row_seed(seed, prompt.id, k)) for k in range(sampling.samples)]
    return made


def _kept(
    out: Path, prompts: Sequence[Prompt], model: str, seed: int, settings: Mapping[str, Any]
) -> dict[tuple[str, int], Response]:
    """What --out has; every line must be of this model and these settings."""
    there_already, torn = responses.read_begun(out)
    asked = {prompt.id: (prompt.content, prompt.tools, dict(prompt.template_args)) for prompt in prompts}
    kept = {}
    for row in there_already:
        there = {"model": row.model, "seed": row.seed, **row.sampling}
        here = {"model": model, "seed": seed, **settings}
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        if names:
            told = "; ".join(f"{name}: {there.get(name)!r} there, {here.get(name)!r} here" for name in names)
            raise ValueError(f"{out}, prompt {row.prompt_id}: want the same model and settings, got {told}")
        context = row.prompt, row.tools, dict(row.template_args)
        if asked.get(row.prompt_id, context) != context:
            raise ValueError(
                f"{out}, prompt {row.prompt_id}: want the same prompt, with the same tools and chat_template_kwargs, "
                "got another of this id"
            )
        kept[row.key] = row
    if torn:
        files.cut(out, torn)
        print(f"{out}: the last line was not finished, {torn} bytes cut off")
    return kept


def _sampling(args: argparse.Namespace) -> Sampling:
    base = PRESETS[args.preset] if args.preset else Sampling()
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Sampling)}
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def _check_engine(args: argparse.Namespace) -> None:
    if args.engine == "vllm":
        vllm_module()
        return
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: want one that is here, got {args.device!r} ({error})") from None


def _batch_size(args: argparse.Namespace) -> int:
    made = ENGINES[args.engine] if args.batch_size is None else args.batch_size
    if made < 1:
        raise ValueError(f"--batch-size: want >= 1, got {made}")
    return made
