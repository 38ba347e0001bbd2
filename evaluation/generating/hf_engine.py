"""Responses of a Hugging Face model, in batches with padding on the left, each drawn by random numbers of its own.

A response's random numbers follow from (seed, prompt id, sample) alone, so it does not depend on what it is generated
with. One thing is left: a model's logits of a padded batch differ from those of a row alone in the last bits (more of
them in bfloat16), and a token whose number falls that close to a boundary comes out as its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from evaluation.generating.checkpoint import Checkpoint
from evaluation.generating.prompts import Prompt
from evaluation.generating.sampling import Sampling, uniforms


class Request(NamedTuple):
    prompt: Prompt
    sample: int
    ids: list[int]  # of the prompt
    seed: int  # of this response


class Generated(NamedTuple):
    ids: list[int]  # without the token that ends it
    finish: str  # "stop" or "length"


class Engine(Protocol):
    def __call__(self, requests: Sequence[Request], sampling: Sampling) -> list[Generated]: ...


class HFEngine:
    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.path, revision=checkpoint.revision, trust_remote_code=checkpoint.trust_remote_code,
            dtype=getattr(torch, checkpoint.dtype),
        )  # fmt: skip
        self._model.eval().to(device)

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request], sampling: Sampling) -> list[Generated]:
        ids, mask = left_padded([request.ids for request in requests], self._checkpoint.pad)
        ids, mask = ids.to(self._device), mask.to(self._device)
        watch = Watch()
        steps = processors(sampling, [request.seed for request in requests], mask)
        config = self._model.generation_config = self._config(sampling)
        made = self._model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config,
            logits_processor=LogitsProcessorList([watch, *steps]),
        )  # fmt: skip
        watch.check(requests)
        return [ended(row, self._checkpoint.eos) for row in made[:, ids.shape[1] :].tolist()]

    def _config(self, sampling: Sampling) -> GenerationConfig:
        """Also in place of the model's own: generate fills what is not set from there, such as a temperature."""
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens, do_sample=False, num_beams=1, use_cache=True,
            eos_token_id=list(self._checkpoint.eos), pad_token_id=self._checkpoint.pad,
        )  # fmt: skip


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """-> ids [S, T] and their mask [S, T], 0 where a row is padded."""
    T = max(map(len, rows))
    ids = torch.tensor([[pad] * (T - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def ended(ids: Sequence[int], eos: Sequence[int]) -> Generated:
    """Up to the first token that ends a response."""
    for i, token in enumerate(ids):
        if token in eos:
            return Generated(list(ids[:i]), "stop")
    return Generated(list(ids), "length")


def processors(sampling: Sampling, seeds: Sequence[int], mask: Tensor) -> list[LogitsProcessor]:
    """mask [S, T] of the prompts -> what is done to a step's logits, in generate's own order, and the draw."""
    made: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        # padding is no token of the row: where it is the eos token, a penalty on it would make short prompts ramble
        padding = mask.shape[1] - mask.sum(1)
        made.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty), prompt_ignore_length=padding))
    if sampling.greedy:
        return made
    if sampling.temperature != 1:
        made.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        made.append(TopKLogitsWarper(top_k=sampling.top_k))
    if sampling.top_p < 1:
        made.append(TopPLogitsWarper(top_p=sampling.top_p))
    numbers = torch.tensor([uniforms(seed, sampling.max_tokens) for seed in seeds], dtype=torch.float64)
    return [*made, Draw(numbers.to(mask.device), mask.shape[1])]


class Draw(LogitsProcessor):
    """Leaves one token of each row, so that the likeliest one, which generate takes without a generator, is the draw.

    numbers [S, max_tokens], prompt: tokens of the padded prompts.
    """

    def __init__(self, numbers: Tensor, prompt: int) -> None:
        self._numbers, self._prompt = numbers, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [S, T], scores [S, V] -> [S, V]"""
        chosen = drawn(scores, self._numbers[:, input_ids.shape[1] - self._prompt])
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def drawn(scores: Tensor, numbers: Tensor) -> Tensor:
    """scores [S, V] log-probs up to a constant, numbers [S] in [0, 1) -> tokens [S], by inverse CDF in float64."""
    total = torch.softmax(scores, -1, dtype=torch.float64).cumsum(-1)  # [S, V]
    last = total[:, -1]
    # below the last value whatever rounding did: so a token of no probability cannot be drawn
    at = torch.minimum(numbers * last, torch.nextafter(last, torch.zeros_like(last)))
    return torch.searchsorted(total, at[:, None], right=True)[:, 0].clamp(max=scores.shape[1] - 1)


class Watch(LogitsProcessor):
    """Remembers rows whose logits were NaN; looked at once a batch, since a look waits for the device."""

    def __init__(self) -> None:
        self._bad: Tensor | None = None  # [S]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = scores.isnan().any(-1)
        self._bad = bad if self._bad is None else self._bad | bad
        return scores

    def check(self, requests: Sequence[Request]) -> None:
        if self._bad is not None and bool(self._bad.any()):
            rows = zip(requests, self._bad.tolist(), strict=True)
            names = dict.fromkeys(request.prompt.where for request, is_bad in rows if is_bad)
            raise FloatingPointError(f"{', '.join(names)}: want logits that are numbers, got NaN")
