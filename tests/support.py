"""What the tests share: cases, the comparison of ours with plain PyTorch and with float64, and the one rule of error.

The rule (docs/numerics.md): over five seeds together, ours may be off from float64, in norm, by 1.25 times what plain
PyTorch in the same dtype is off, and by 2 times elementwise, plus a stated floor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import head_case
from expo_kernels import Batch, Execution, HeadOptions, reference
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import from_padded

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEEDS = range(5)
SMALL = 1 << 17  # a workspace of a few rows at the tests' sizes, so that the chunk loop loops
DTYPE_IDS = {"ids": lambda d: str(d).removeprefix("torch.")}  # of a parametrised dtype
NAMES = ("loss", "d_hidden", "d_weight", "d_bias")


class Case(NamedTuple):
    """Everything a loss takes, in float64 or in the dtype the rounding to which made it exact."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    batch: Batch
    softcap: float | None = None
    scale: float = 1.0
    reference: Tensor | None = None
    columns: dict[str, Tensor] | None = None

    def leaves(self, dtype: torch.dtype) -> tuple[list[Tensor], HeadOptions]:
        """hidden, weight and bias as leaves in `dtype`, and the head around them."""
        made = [x.to(dtype).detach().clone().requires_grad_() for x in (self.hidden, self.weight)]
        if self.bias is not None:
            made.append(self.bias.to(dtype).detach().clone().requires_grad_())
        bias = made[2] if self.bias is not None else None
        return made, HeadOptions(bias=bias, softcap=self.softcap, logit_scale=self.scale)


def padded_labels(sequences: int, T: int, y: Tensor, seed: int = 0) -> Tensor:
    """[sequences, T] from y, with prompts of ragged length masked and one response of one token."""
    labels = y[: sequences * T].view(sequences, T).clone()
    begin = torch.randint(0, T, (sequences,), generator=torch.Generator().manual_seed(seed))
    begin[0] = T - 1
    labels[torch.arange(T) < begin[:, None]] = -100
    return labels


def padded_case(
    sequences: int, T: int, D: int, V: int, *, dtype=torch.float32, kind: str = "trained", seed: int = 0,
    bias: bool = False, softcap: float | None = None, scale: float = 1.0, **layout,
) -> Case:  # fmt: skip
    h, w, y = head_case(sequences * T, D, V, kind=kind, dtype=dtype, seed=seed)
    labels = padded_labels(sequences, T, y, seed)
    b = torch.randn(V, generator=torch.Generator().manual_seed(seed)).to(dtype) if bias else None
    return Case(h.view(sequences, T, D), w, b, from_padded(labels, **layout), softcap, scale)


def with_reference(case: Case, objective, seed: int) -> Case:
    """Reference log-probs near the policy's own, and the columns that the objective declares."""
    needs, host = objective.needs, case.batch.host
    random = torch.Generator().manual_seed(seed)
    S, P, KP = len(host.lengths), host.groups, host.grouped_sequences
    if needs.reference:
        with torch.no_grad():
            leaves, head = case.leaves(torch.float64)
            seq = reference.sequence_logprob(leaves[0], leaves[1], case.batch, head)
        shape = (3, S) if needs.several_references else (S,)
        case = case._replace(reference=seq - torch.randn(shape, generator=random, dtype=torch.float64).abs())
    columns = {name: torch.randn(P, generator=random) for name in needs.columns}
    columns |= {name: torch.randn(KP, generator=random) for name in needs.sequence_columns}
    if "desirable" in columns:
        columns["desirable"] = (columns["desirable"] > 0).float()
    return case._replace(columns=columns or None)


def run(loss: Callable[..., Tensor], case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """loss(hidden, weight, head) -> its value and the gradients of its leaves."""
    leaves, head = case.leaves(dtype)
    value = loss(leaves[0], leaves[1], head)
    value.backward()
    return dict(zip(NAMES, [value.detach(), *(leaf.grad for leaf in leaves)], strict=False))


def truth(case: Case, objective, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The reference pipeline in `dtype`; float64 is the truth, the case's own dtype is plain PyTorch."""

    def loss(hidden, weight, head):
        return reference.preference_loss(
            hidden, weight, case.batch, objective, reference=case.reference, columns=case.columns, head=head
        )

    return run(loss, case, dtype)


def fused(case: Case, objective, workspace_bytes: int | None = SMALL, backend: str = "auto") -> dict[str, Tensor]:
    def loss(hidden, weight, head):
        return preference_loss(
            hidden, weight, case.batch, objective, reference=case.reference, columns=case.columns, head=head,
            execution=Execution(workspace_bytes=workspace_bytes, backend=backend),
        ).loss  # fmt: skip

    return run(loss, case, case.hidden.dtype)


def rounding_floor(case: Case) -> float:
    """What fp32 cannot do better: a logit carries eps |z|, a sum of log-probs eps |seq|, and d is their difference."""
    dtype = torch.float64 if case.hidden.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        (h, w, *_), head = case.leaves(torch.float64)
        rows = h.reshape(-1, h.shape[-1])[case.batch.rows]
        z = (rows @ w.T).abs().max() if rows.numel() else torch.zeros(())
        seq = reference.sequence_logprob(h, w, case.batch, head).abs().max() if rows.numel() else torch.zeros(())
    return torch.finfo(dtype).eps * float(1 + torch.maximum(z * case.scale, seq))


class Errors:
    """Errors of ours and of plain PyTorch against the truth, gathered over seeds."""

    def __init__(self) -> None:
        self.rows: dict[str, list[list[float]]] = {}

    def add(self, name: str, ours: Tensor, plain: Tensor, exact: Tensor, floor: float) -> None:
        exact = exact.double()
        assert ours.shape == exact.shape, f"{name}: {tuple(ours.shape)} against {tuple(exact.shape)}"
        assert bool(ours.isfinite().all()), f"{name} is not finite"
        off, base = ours.double() - exact, plain.double() - exact
        norm, top = float(exact.norm()), float(exact.abs().max()) if exact.numel() else 0.0
        largest = [float(x.abs().max()) if x.numel() else 0.0 for x in (off, base)]
        self.rows.setdefault(name, []).append(
            [float(off.norm()), float(base.norm()), floor * norm, *largest, floor * top]
        )

    def check(self, factor: float = 1.25, elementwise: float = 2.0) -> None:
        for name, rows in self.rows.items():
            total = torch.tensor(rows, dtype=torch.float64).square().sum(0).sqrt()
            ours, plain, floor, ours_max, plain_max, floor_max = total.tolist()
            assert ours <= factor * plain + floor, f"{name}: {ours:.2e} against plain {plain:.2e}, floor {floor:.1e}"
            assert ours_max <= elementwise * plain_max + floor_max, (
                f"{name}, largest: {ours_max:.2e} against plain {plain_max:.2e}, floor {floor_max:.1e}"
            )
