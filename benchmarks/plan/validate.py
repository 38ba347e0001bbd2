"""Predicted against measured memory: whole steps of small models on this CPU, one rank, by torch's own account.

What it holds to 10 %: the traced body and the formula of each head, at whichever moment is the peak, in fp32 and bf16,
with and without checkpointing. What it cannot: ZeRO's shares (tests/test_train_memory.py has the arithmetic), a GPU's
allocator, buffers inside of an operation, and time. Liger's head is compiled, as by default. TRL's runs with its row
kernels replaced by nothing, since on a GPU they take no memory and its stand-in for a CPU takes several tiles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import measure
from benchmarks.plan.heads import TILE_COLUMNS
from benchmarks.plan.peak import Peak, peak_of
from benchmarks.plan.traced import trace
from expo_kernels.fused_expo_loss import expo_loss
from expo_kernels.layout import from_padded
from train.memory import Run, Shape

BENCH = "plan-validation"  # what its records are called
WITHIN = 0.1  # relative
PACKAGES = {"liger": "liger_kernel", "trl": "trl"}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden [S, T, D], weight [V, D], labels [S, T]


@dataclass(frozen=True, kw_only=True)
class Case:
    head: str
    bf16: bool = False
    checkpointing: bool = False
    layers: int = 3
    D: int = 128
    V: int = 8000
    sequences: int = 4
    length: int = 128
    masked: float = 0.5
    frozen: bool = False  # the head
    workspace_bytes: int = 1 << 30

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.V, hidden_size=self.D, intermediate_size=7 * self.D // 2, num_hidden_layers=self.layers,
            num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=False,
        )  # fmt: skip

    @property
    def labels(self) -> Tensor:
        """[S, T], the beginning of each row masked."""
        random = torch.Generator().manual_seed(0)
        labels = torch.randint(0, self.V, (self.sequences, self.length), generator=random)
        labels[:, : round(self.masked * self.length)] = -100
        return labels

    @property
    def shape(self) -> Shape:
        whole = Shape.of(self.config)
        if not self.frozen:
            return whole
        return dataclasses.replace(whole, trained=whole.trained - whole.head_parameters, head_trained=False)

    @property
    def run(self) -> Run:
        return Run(
            ranks=1, stage=0, bf16=self.bf16, offload_optimizer=False, offload_param=False,
            checkpointing=self.checkpointing, sequences=self.sequences, length=self.length,
            scored=int((self.labels != -100).sum()), workspace_bytes=self.workspace_bytes, reference_engine=False,
        )  # fmt: skip

    def __str__(self) -> str:
        kind = f"{'bf16' if self.bf16 else 'fp32'}, {'checkpointing' if self.checkpointing else 'plain'}"
        size = f"{self.layers} x {self.D}, V {self.V}, {self.sequences} x {self.length}"
        others = (
            f"{', frozen head' if self.frozen else ''}{', small workspace' if self.workspace_bytes < 1 << 30 else ''}"
        )
        return f"{self.head:<5} {kind:<19} {size}{others}"


HEAD_HEAVY: dict[str, Any] = {}
BODY_HEAVY: dict[str, Any] = {"layers": 6, "V": 500, "sequences": 2, "length": 256}
WIDE: dict[str, Any] = {"layers": 1, "D": 512, "V": 4000, "sequences": 8, "masked": 0.0}
SMALL_WORKSPACE: dict[str, Any] = {"masked": 0.0, "workspace_bytes": 4 << 20}
HEADS = ("naive", "liger", "trl", "ours")
CASES = (
    *(
        Case(head=head, bf16=bf16, checkpointing=checkpointing, **size)
        for size, kinds in (
            (HEAD_HEAVY, ((False, False), (False, True), (True, True))),
            (BODY_HEAVY, ((False, False), (False, True), (True, True))),
            (WIDE, ((False, False), (False, True))),
        )
        for bf16, checkpointing in kinds
        for head in HEADS
    ),
    *(Case(head=head, checkpointing=True, frozen=True) for head in HEADS),
    *(Case(head="ours", bf16=bf16, checkpointing=True, **SMALL_WORKSPACE) for bf16 in (False, True)),
)


class Checked(NamedTuple):
    """Bytes above weights and gradients."""

    case: Case
    predicted: int
    moment: str
    measured: int | None  # None: the head's package is not installed

    @property
    def ratio(self) -> float | None:
        return None if self.measured is None else self.predicted / self.measured

    @property
    def holds(self) -> bool:
        return self.ratio is None or abs(self.ratio - 1) <= WITHIN


def check(case: Case) -> Checked:
    found = predicted(case)
    package = PACKAGES.get(case.head)
    here = package is None or importlib.util.find_spec(package) is not None
    return Checked(case, found.above, found.moment, measured(case) if here else None)


def line(one: Checked) -> str:
    if one.ratio is None or one.measured is None:
        return f"{one.case!s:<68} missing: {PACKAGES[one.case.head]} is not installed"
    verdict = "" if one.holds else f"  beyond {100 * WITHIN:.0f} %"
    sizes = f"{one.predicted / 2**20:>9.2f} {one.measured / 2**20:>9.2f}"
    return f"{one.case!s:<68} {sizes} {100 * (one.ratio - 1):>+7.1f} %  {one.moment}{verdict}"


def predicted(case: Case) -> Peak:
    body = trace(case.config, case.sequences, case.length, bf16=case.bf16, checkpointing=case.checkpointing)
    return peak_of(case.shape, case.run, body, case.head)


def measured(case: Case) -> int:
    """The peak of the second step: of the first, libraries and compilers would be in it."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(case.config).train()
    if case.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model = model.bfloat16() if case.bf16 else model
    model.lm_head.weight.requires_grad_(not case.frozen)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    labels, loss = case.labels, _loss(case)

    def step() -> None:
        hidden = model.model(input_ids=labels.clamp(min=0), use_cache=False).last_hidden_state
        loss(hidden, model.lm_head.weight, labels).backward()

    with _row_kernels_without_memory() if case.head == "trl" else contextlib.nullcontext():
        step()
        return measure.allocated(step)


def _loss(case: Case) -> Loss:
    return {"naive": _naive, "liger": _liger, "trl": _trl, "ours": _ours(case.workspace_bytes)}[case.head]


def _naive(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logp = torch.log_softmax((hidden @ weight.T).float(), -1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return (logp * (labels != -100)).sum()


def _ours(workspace_bytes: int) -> Loss:
    def ours(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        batch = from_padded(labels)
        return expo_loss(hidden, weight, batch, variant="comp", lam=0.1, workspace_bytes=workspace_bytes).loss

    return ours


def _liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    return LigerFusedLinearDPOLoss(use_ref_model=False)(weight, hidden, labels)[0]


def _trl(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    scored = labels != -100
    given = (hidden[scored], weight, None, labels[scored], 1.0, TILE_COLUMNS, None, 1.0, ("log_probs",))
    return ChunkedLogProbFunction.apply(*given)[0].sum()


def _row_kernels_without_memory() -> Any:
    """And the product that adds to fp32, which on a GPU is one call; here it would copy its operands."""

    def nothing(*arguments: object, **options: object) -> None:
        return None

    where = "trl.kernels.chunked_logprob"
    return mock.patch.multiple(where, _forward_tile=nothing, _backward_tile=nothing, _addmm_fp32=nothing)
