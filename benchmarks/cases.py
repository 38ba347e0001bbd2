"""Workloads: the shapes of real models, and hidden states whose logits look like a model's.

Random normal logits are flat, which flatters whoever skips small probabilities and hides errors in large ones; so a
workload has a kind: "flat", "trained" (a Zipf-like vocabulary and a stated entropy, labels drawn from the model's own
softmax or mixed to a stated mean nll) or "peaked" (labels from certain to all but impossible). A Setting knows one
more, "lm": what the small language model of toy/ makes of text it was trained on (benchmarks/small_lm.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("flat", "trained", "peaked")
SETTING_KINDS = (*KINDS, "lm")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
ENTROPY = 2.0  # nats, of "trained"
ROWS = 256  # whose logits exist at once


class Shape(NamedTuple):
    """A model's output head."""

    D: int
    V: int
    softcap: float | None = None


MODELS = {
    "llama3-8b": Shape(4096, 128256),
    "qwen2.5-7b": Shape(3584, 152064),
    "gemma2-2b": Shape(2304, 256000, softcap=30.0),
    "mistral-7b": Shape(4096, 32768),
    "pythia-2.8b": Shape(2560, 50304),
    "small": Shape(1024, 32000),  # a head that a CPU multiplies in a second
    "tiny": Shape(64, 1000),
}
TOY = "toy"  # the model of kind "lm", whose shape is what it has


def usual_dtype() -> str:
    """bf16 where the machine multiplies it at speed: on a GPU, or a CPU with AVX-512; elsewhere torch emulates it, up
    to a hundred times slower than fp32."""
    return "bf16" if torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability() == "AVX512" else "fp32"


def shape_of(model: str) -> Shape:
    """Of MODELS, or "DxV"."""
    if model in MODELS:
        return MODELS[model]
    D, cross, V = model.partition("x")
    if not (cross and D.isdigit() and V.isdigit() and int(D) > 1 and int(V) > 1):
        raise ValueError(f'shape_of: want one of {", ".join(MODELS)}, or "DxV", got {model!r}')
    return Shape(int(D), int(V))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A workload by name. `tokens` counts masked ones too; entropy and nll are what is asked for, of "trained"."""

    model: str = "small"
    tokens: int = 2048
    pairs: int = 4
    masked: float = 0.0  # share of each sequence that is prompt
    dtype: str = "bf16"
    kind: str = "trained"
    entropy: float | None = None  # None: ENTROPY
    nll: float | None = None  # None: labels are the model's own draws, so about the entropy
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("kind", SETTING_KINDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"Setting: want {name} one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.pairs < 1 or self.tokens < 2 * self.pairs or self.tokens % (2 * self.pairs):
            raise ValueError(f"Setting: want tokens a multiple of the {2 * self.pairs} sequences, got {self.tokens}")
        if not 0.0 <= self.masked < 1.0:
            raise ValueError(f"Setting: want masked in [0, 1), got {self.masked}")
        if self.kind != "trained" and (self.entropy, self.nll) != (None, None):
            raise ValueError(f"Setting: want entropy and nll for the kind trained only, got them for {self.kind}")
        if (self.kind == "lm") != (self.model == TOY):
            raise ValueError(f"Setting: want the model {TOY} for the kind lm and for no other, got {self.model!r}")
        if self.model != TOY:
            shape_of(self.model)


class HeadCase(NamedTuple):
    h: Tensor  # [N, D]
    w: Tensor  # [V, D]
    y: Tensor  # [N]


def head_case(
    N: int, D: int, V: int, *, kind: str = "trained", entropy: float = ENTROPY, nll: float | None = None,
    softcap: float | None = None, dtype: torch.dtype = torch.float32, seed: int = 0,
    device: torch.device | str = "cpu",
) -> HeadCase:  # fmt: skip
    """Hidden states, head and labels of a kind; entropy and nll (nats) are those of "trained"."""
    if kind not in KINDS:
        raise ValueError(f"head_case: want kind one of {', '.join(KINDS)}, got {kind!r}")
    random = torch.Generator(device).manual_seed(seed)
    if kind == "flat":
        h, w, y = _flat(N, D, V, random)
    elif kind == "peaked":
        h, w, y = _peaked(N, D, V, random)
    else:
        h, w = _trained(N, D, V, entropy, softcap, random)
        y = torch.cat([_drawn(logp, random) for logp in log_softmax(h, w, softcap)])
        y = y if nll is None else _mixed(HeadCase(h, w, y), softcap, nll, random)
    return HeadCase(h.to(dtype), w.to(dtype), y)


def pair_labels(y: Tensor, pairs: int, *, masked: float = 0.0, seed: int = 0) -> Tensor:
    """y [N] as padded labels [2 * pairs, T] on the host, a share of each row's beginning masked as its prompt, more or
    less; at least one token stays."""
    if y.numel() % (2 * pairs):
        raise ValueError(f"pair_labels: want N a multiple of {2 * pairs}, got {y.numel()}")
    labels = y.cpu().view(2 * pairs, -1).clone()
    T = labels.shape[1]
    random = torch.Generator().manual_seed(seed)
    spread = (torch.rand(2 * pairs, generator=random) - 0.5) * min(masked, 1 - masked)  # prompts differ in length
    prompt = ((masked + spread) * T).round().long().clamp(max=T - 1)
    labels[torch.arange(T) < prompt[:, None]] = -100
    return labels


class Observed(NamedTuple):
    """What a head makes of its labels."""

    logp: Tensor  # [N] fp32, or float64 for float64
    entropy: Tensor  # [N] nats


def observed(case: HeadCase, softcap: float | None = None) -> Observed:
    logps, entropies = [], []
    for part, y in zip(log_softmax(case.h, case.w, softcap), case.y.split(ROWS), strict=True):
        logps.append(part.gather(1, y[:, None])[:, 0])
        entropies.append(-(part.exp() * part).sum(-1))
    return Observed(torch.cat(logps), torch.cat(entropies))


def log_softmax(h: Tensor, w: Tensor, softcap: float | None) -> Iterator[Tensor]:
    """In fp32, or float64 for float64: [ROWS, V] after [ROWS, V]."""
    precise = torch.float64 if h.dtype == torch.float64 else torch.float32
    w = w.to(precise)
    for part in h.split(ROWS):
        z = part.to(precise) @ w.T
        yield torch.log_softmax(z if softcap is None else softcap * torch.tanh(z / softcap), -1)


def _drawn(logp: Tensor, random: torch.Generator) -> Tensor:
    """logp [n, V] -> a token a row, by the inverse of the distribution function: in a seventh of multinomial's time."""
    below = logp.exp().cumsum(-1)
    u = torch.rand(len(logp), 1, generator=random, device=logp.device, dtype=logp.dtype) * below[:, -1:]
    return torch.searchsorted(below, u, right=True)[:, 0].clamp(max=logp.shape[1] - 1)


def _flat(N: int, D: int, V: int, random: torch.Generator) -> HeadCase:
    h = torch.randn(N, D, generator=random, device=random.device)
    w = torch.randn(V, D, generator=random, device=random.device) / math.sqrt(D)
    return HeadCase(h, w, torch.randint(0, V, (N,), generator=random, device=random.device))


def _peaked(N: int, D: int, V: int, random: torch.Generator) -> HeadCase:
    """h_n along the row of w of some token, with a length that gives it a logit up to 24 above the crowd or, for
    every fourth row, 65 to 130; the label is that token, but for those fourth rows another one: nll about 65 to 130."""
    at = random.device
    w = torch.randn(V, D, generator=random, device=at)
    w = w / w.norm(dim=1, keepdim=True)
    token = torch.randint(0, V, (N,), generator=random, device=at)
    far = torch.arange(N, device=at) % 4 == 3
    lift = torch.empty(N, device=at).uniform_(0.0, 24.0, generator=random) + math.log(V)
    lift[far] = torch.empty(int(far.sum()), device=at).uniform_(65.0, 130.0, generator=random)
    y = torch.where(far, (token + 1 + torch.randint(0, V - 1, (N,), generator=random, device=at)) % V, token)
    w = w * 4.0  # typical of a trained head: hidden states are short, rows of w are not
    return HeadCase(w[token] / 16.0 * lift[:, None], w, y)


def _trained(
    N: int, D: int, V: int, entropy: float, softcap: float | None, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """-> h, w. One coordinate carries Zipf's log-frequencies, the others the context; the context's scale is found by
    bisection so that the mean entropy is the one asked for."""
    order = torch.randperm(V, generator=random, device=random.device)
    w = torch.randn(V, D, generator=random, device=random.device) / math.sqrt(D)
    w[:, 0] = -torch.log(1.0 + order) / 8.0
    h = torch.randn(N, D, generator=random, device=random.device)
    h[:, 0] = 8.0

    def above(scale: float) -> bool:
        logp = next(log_softmax(_scaled(h[:64], scale), w, softcap))
        return bool(-(logp.exp() * logp).sum(-1).mean() > entropy)

    low, high = 0.0, 64.0
    if softcap is not None:  # under it large logits are all alike: the first scale that is enough, not any
        high = next((scale for k in range(-4, 20) if not above(scale := 1.25**k)), 0.0)
        if not high:
            raise ValueError(f"head_case: want an entropy that a softcap of {softcap} leaves possible, got {entropy}")
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return _scaled(h, high), w


def _scaled(h: Tensor, scale: float) -> Tensor:
    return torch.cat([h[:, :1], h[:, 1:] * scale], dim=1)


def _mixed(case: HeadCase, softcap: float | None, nll: float, random: torch.Generator) -> Tensor:
    """The labels, so many of them replaced that their mean nll is the one asked for: by the likeliest token where that
    is lower, else by the label of another position, which is as frequent but does not belong here."""
    own = -observed(case, softcap).logp
    if nll < float(own.mean()):
        other = torch.cat([logp.argmax(-1) for logp in log_softmax(case.h, case.w, softcap)])
    else:
        other = case.y[torch.randperm(case.y.numel(), generator=random, device=random.device)]
    change = -observed(case._replace(y=other), softcap).logp - own
    order = torch.randperm(case.y.numel(), generator=random, device=random.device)
    means = own.mean() + torch.cat([change.new_zeros(1), change[order].cumsum(0)]) / case.y.numel()
    count = int((means - nll).abs().argmin())
    if abs(float(means[count]) - nll) > 0.05 * max(nll, 1.0):
        found = f"{float(own.mean()):.2f} and {float(means[-1]):.2f}"
        raise ValueError(f"head_case: want an nll between {found}, got {nll}")
    swapped = order[:count]
    return case.y.index_copy(0, swapped, other[swapped])
