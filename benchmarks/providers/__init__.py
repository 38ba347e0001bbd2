"""Who is measured: one loss of pairs, from hidden states and labels to a scalar, each as its user would write it.

contract.py     the workload, the loss that all compute, and what a provider is
ours.py         this library, by backend            plain_torch.py   naive, compiled, torch's linear_cross_entropy
trl_chunked.py  liger.py  cut_ce.py  quack_ce.py    the peers; each says why it cannot run here
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import DTYPES, Setting
from benchmarks.providers import cut_ce, liger, ours, plain_torch, quack_ce, trl_chunked
from benchmarks.providers.contract import Bounds, Provider, Workload, here, workload

__all__ = ["DTYPES", "MODES", "PROVIDERS", "Bounds", "Provider", "Workload", "peak_step", "step", "workload"]

PROVIDERS: dict[str, Provider] = {
    **plain_torch.PROVIDERS, **ours.PROVIDERS, **trl_chunked.PROVIDERS, **liger.PROVIDERS, **cut_ce.PROVIDERS,
    **quack_ce.PROVIDERS,
}  # fmt: skip
MODES = {"step": (True, True), "frozen": (True, False), "forward": (False, False)}  # gradients of hidden, weight


def step(
    provider: str, case: Workload, mode: str, workspace_bytes: int | None = None
) -> Callable[[], tuple[Tensor, ...]]:
    """A step to time: -> the loss and the gradients that the mode asks for."""
    wants = MODES[mode]
    hidden, weight = (
        x.detach().requires_grad_(want) for x, want in zip((case.hidden, case.weight), wants, strict=True)
    )
    case = case._replace(hidden=hidden, weight=weight)
    leaves = [x for x in (hidden, weight) if x.requires_grad]

    def run() -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(bool(leaves)):
            loss = PROVIDERS[provider].loss(case, workspace_bytes)
        return (loss.detach(), *(torch.autograd.grad(loss, leaves) if leaves else ()))

    return run


def peak_step(
    provider: str, mode: str, workspace_bytes: int | None, threads: int, saved: str, setting: Mapping[str, Any]
) -> Callable[[], object]:
    """The step of measure.peaks, on the setting's workload as torch.save has left it; before it, modules are loaded by
    a small step and compiled providers compiled."""
    torch.set_num_threads(threads)
    asked = Setting(**setting)
    case: Workload = torch.load(saved, weights_only=False, map_location=here())
    if PROVIDERS[provider].compiled:
        torch.compiler.reset()
        made = step(provider, case, mode, workspace_bytes)
        made()
        return made
    small = dataclasses.replace(asked, tokens=8, pairs=1, model=asked.model if asked.kind == "lm" else "tiny")
    step(provider, workload(small), mode)()
    return step(provider, case, mode, workspace_bytes)
