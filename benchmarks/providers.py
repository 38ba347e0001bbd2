"""Who is measured: one loss of pairs, from hidden states and labels to a scalar, each as its user would write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import MODELS, head_case, pair_labels
from expo_kernels import Batch, Execution, HeadOptions
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import from_padded
from expo_kernels.objectives import ExpoComp

OBJECTIVE = ExpoComp(lam=0.05, temperature=20.0)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


class Workload(NamedTuple):
    hidden: Tensor  # [2P, T, D]
    weight: Tensor  # [V, D]
    labels: Tensor  # [2P, T]
    batch: Batch
    softcap: float | None


Loss = Callable[[Workload, "int | None"], Tensor]


def workload(
    model: str, tokens: int, pairs: int, *, dtype: str = "bf16", kind: str = "trained", entropy: float = 2.0,
    masked: float = 0.0, seed: int = 0,
) -> Workload:  # fmt: skip
    """`tokens` counts masked ones too; hidden states and head of a stated entropy."""
    D, V, softcap = MODELS[model]
    h, w, y = head_case(tokens, D, V, kind=kind, entropy=entropy, dtype=DTYPES[dtype], seed=seed)
    labels = pair_labels(y, pairs, masked=masked, seed=seed)
    return Workload(h.view(*labels.shape, D), w, labels, from_padded(labels), softcap)


def naive(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    """What one writes without a library: all logits, in fp32 for the softmax, masked after."""
    return _naive(case.hidden, case.weight, case.labels, case.softcap)


def _naive(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if logits.dtype != torch.float64:
        logits = logits.float()
    mask = labels != -100
    logp = torch.log_softmax(logits, -1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    chosen, rejected = (logp * mask).sum(1).chunk(2)
    d = (chosen - rejected) / OBJECTIVE.temperature
    return (-torch.nn.functional.logsigmoid(d) - 0.5 * OBJECTIVE.lam * (chosen + rejected)).mean()


_compiled = torch.compile(_naive)


def compiled(case: Workload, workspace_bytes: int | None = None) -> Tensor:
    return _compiled(case.hidden, case.weight, case.labels, case.softcap)


def ours_on(backend: str) -> Loss:
    def ours(case: Workload, workspace_bytes: int | None = None) -> Tensor:
        return preference_loss(
            case.hidden, case.weight, case.batch, OBJECTIVE,
            head=HeadOptions(softcap=case.softcap),
            execution=Execution(backend=backend, workspace_bytes=workspace_bytes),
        ).loss  # fmt: skip

    return ours


PROVIDERS: dict[str, Loss] = {"naive": naive, "torch.compile": compiled, "plain": ours_on("plain")}
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
            loss = PROVIDERS[provider](case, workspace_bytes)
        return (loss.detach(), *(torch.autograd.grad(loss, leaves) if leaves else ()))

    return run


def peak_step(provider: str, mode: str, workspace_bytes: int | None, threads: int, **shape) -> Callable[[], object]:
    """The step of measure.peak_bytes; compiled providers are compiled before the measurement."""
    torch.set_num_threads(threads)
    made = step(provider, workload(**shape), mode, workspace_bytes)
    if provider == "torch.compile":
        made()
    return made
