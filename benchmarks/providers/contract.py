"""What is measured and by whom: the workload on a device, the one loss that all compute, and what a provider is."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import DTYPES, HeadCase, Setting, head_case, observed, pair_labels, shape_of
from expo_kernels import Batch
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective

BETA = 0.1
OBJECTIVE = make_objective("dpo", beta=BETA)
DRIFT = 3.0  # nats between the policy and its reference, a sequence: so that no pair's gradient vanishes


class Workload(NamedTuple):
    hidden: Tensor  # [2P, T, D]
    weight: Tensor  # [V, D]
    labels: Tensor  # [2P, T]
    reference: Tensor  # [2P] summed log-probs, given as numbers
    batch: Batch
    softcap: float | None
    entropy: float  # nats, means over the scored tokens
    nll: float


Loss = Callable[[Workload, "int | None"], Tensor]  # the second: workspace in bytes, for who has one


class Bounds(NamedTuple):
    """How many times naive's error a provider's may be, before it is wrong."""

    loss: float
    dh: float
    dw: float


STRICT = Bounds(1.25, 1.25, 1.25)  # ours: the rule of docs/numerics.md
# peers may sum dw in bf16 over their chunks, or keep the softmax itself in bf16, which is up to three times as far off;
# who is further off than this computes something else
LOOSE = Bounds(4.0, 4.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Provider:
    """The loss as its user would write it."""

    loss: Loss
    missing: Callable[[Workload], str | None]  # why it cannot run this workload here, or None
    bounds: Bounds = LOOSE
    ours: bool = False
    compiled: bool = False  # by torch.compile, for each shape
    note: str = ""  # what a reader of its figures should know


def dpo(seq: Tensor, reference: Tensor) -> Tensor:
    """seq [2P] sums of log-probs, chosen half first -> the mean loss, for who has no preference loss of its own."""
    chosen, rejected = (seq - reference.to(seq.dtype)).chunk(2)
    return -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()


def here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def workload(setting: Setting) -> Workload:
    """On this machine's device."""
    dtype, device = DTYPES[setting.dtype], here()
    if setting.kind == "lm":
        from benchmarks.small_lm import language_case

        softcap = None
        case = HeadCase(*(x.to(device) for x in language_case(setting.tokens, dtype=dtype, seed=setting.seed)))
    else:
        D, V, softcap = shape_of(setting.model)
        more = {} if setting.entropy is None else {"entropy": setting.entropy}
        case = head_case(
            setting.tokens, D, V, kind=setting.kind, nll=setting.nll, softcap=softcap, dtype=dtype, seed=setting.seed,
            device=device, **more,
        )  # fmt: skip
    labels = pair_labels(case.y, setting.pairs, masked=setting.masked, seed=setting.seed)
    batch = from_padded(labels).to(device)
    seen = observed(case._replace(h=case.h[batch.rows], y=batch.labels), softcap)
    sums = torch.zeros(len(labels), dtype=torch.float64, device=device)
    sums.index_add_(0, batch.segments, seen.logp.double())
    moved = DRIFT * torch.randn(len(labels), generator=torch.Generator().manual_seed(setting.seed)).to(device)
    return Workload(
        case.h.view(*labels.shape, -1), case.w, labels.to(device),
        (sums + moved).clamp(max=0.0).to(seen.logp.dtype), batch, softcap,
        float(seen.entropy.mean()), -float(seen.logp.mean()),
    )  # fmt: skip


def anywhere(case: Workload) -> str | None:
    return None


def not_importable(module: str) -> str | None:
    """Why, on one line."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a library that is here but does not fit this torch may raise anything
        return f"{module} cannot be imported ({in_words(error)})"
    return None


def needs_cuda(case: Workload, who: str, capability: tuple[int, int] = (8, 0)) -> str | None:
    if not case.hidden.is_cuda:
        return f"{who} wants a CUDA device"
    found = torch.cuda.get_device_capability(case.hidden.device)
    if torch.version.hip is None and found < capability:
        return f"{who} wants compute capability {capability[0]}.{capability[1]}, got {found[0]}.{found[1]}"
    return None


def no_softcap(case: Workload, who: str) -> str | None:
    return None if case.softcap is None else f"{who} has no soft cap"


def in_words(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:197]}..."
