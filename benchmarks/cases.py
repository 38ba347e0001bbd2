"""Workloads: the shapes of real models, and hidden states whose logits look like a model's.

Random normal logits are flat, which flatters whoever skips small probabilities and hides errors in large ones; so a
workload has a kind: "flat", "trained" (a Zipf-like vocabulary and a stated entropy, labels drawn from the model's own
softmax) or "peaked" (labels from certain to all but impossible).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("flat", "trained", "peaked")


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


class HeadCase(NamedTuple):
    h: Tensor  # [N, D]
    w: Tensor  # [V, D]
    y: Tensor  # [N]


def head_case(
    N: int, D: int, V: int, *, kind: str = "trained", entropy: float = 2.0, dtype=torch.float32, seed: int = 0
) -> HeadCase:
    """Hidden states, head and labels of a kind; entropy (nats) is that of "trained"."""
    if kind not in KINDS:
        raise ValueError(f"head_case: want kind one of {', '.join(KINDS)}, got {kind!r}")
    random = torch.Generator().manual_seed(seed)
    build = {"flat": _flat, "peaked": _peaked, "trained": _trained}[kind]
    h, w, y = build(N, D, V, entropy, random)
    return HeadCase(h.to(dtype), w.to(dtype), y)


def pair_labels(y: Tensor, pairs: int, *, masked: float = 0.0, seed: int = 0) -> Tensor:
    """y [N] as padded labels [2 * pairs, T], a share of each row's beginning masked as its prompt, more or less."""
    if y.numel() % (2 * pairs):
        raise ValueError(f"pair_labels: want N a multiple of {2 * pairs}, got {y.numel()}")
    labels = y.view(2 * pairs, -1).clone()
    T = labels.shape[1]
    random = torch.Generator().manual_seed(seed)
    spread = (torch.rand(2 * pairs, generator=random) - 0.5) * min(masked, 1 - masked)  # prompts differ in length
    prompt = ((masked + spread) * T).round().long()
    labels[torch.arange(T) < prompt[:, None]] = -100
    return labels


def _flat(N: int, D: int, V: int, entropy: float, random: torch.Generator) -> HeadCase:
    h = torch.randn(N, D, generator=random)
    w = torch.randn(V, D, generator=random) / math.sqrt(D)
    return HeadCase(h, w, torch.randint(0, V, (N,), generator=random))


def _peaked(N: int, D: int, V: int, entropy: float, random: torch.Generator) -> HeadCase:
    """h_n along the row of w of some token, with a length that gives it a logit up to 24 above the crowd or, for
    every fourth row, 65 to 130; the label is that token, but for those fourth rows another one: nll about 65 to 130."""
    w = torch.randn(V, D, generator=random)
    w = w / w.norm(dim=1, keepdim=True)
    token = torch.randint(0, V, (N,), generator=random)
    far = torch.arange(N) % 4 == 3
    lift = torch.empty(N).uniform_(0.0, 24.0, generator=random) + math.log(V)
    lift[far] = torch.empty(int(far.sum())).uniform_(65.0, 130.0, generator=random)
    y = torch.where(far, (token + 1 + torch.randint(0, V - 1, (N,), generator=random)) % V, token)
    w = w * 4.0  # typical of a trained head: hidden states are short, rows of w are not
    return HeadCase(w[token] / 16.0 * lift[:, None], w, y)


def _trained(N: int, D: int, V: int, entropy: float, random: torch.Generator) -> HeadCase:
    """One coordinate carries Zipf's log-frequencies, the others the context; the context's scale is found by bisection
    so that the mean entropy is the one asked for, and labels are drawn from the softmax itself."""
    order = torch.randperm(V, generator=random)
    w = torch.randn(V, D, generator=random) / math.sqrt(D)
    w[:, 0] = -torch.log(1.0 + order) / 8.0
    h = torch.randn(N, D, generator=random)
    h[:, 0] = 8.0
    low, high = 0.0, 64.0
    for _ in range(24):
        middle = (low + high) / 2
        logp = torch.log_softmax(_scaled(h[:64], middle) @ w.T, dim=-1)
        low, high = (middle, high) if -(logp.exp() * logp).sum(-1).mean() > entropy else (low, middle)
    h = _scaled(h, high)
    y = torch.cat(
        [torch.multinomial(torch.softmax(part @ w.T, -1), 1, generator=random)[:, 0] for part in h.split(256)]
    )
    return HeadCase(h, w, y)


def _scaled(h: Tensor, scale: float) -> Tensor:
    return torch.cat([h[:, :1], h[:, 1:] * scale], dim=1)
