"""The memory that one GPU is expected to take in preference training under DeepSpeed ZeRO, part by part, with the fused
loss head and with a naive one. Known before anything is loaded; each formula stands at the function that uses it.

M = sequences x length positions, N scored tokens, D hidden, V vocabulary; e bytes a number: 2 in bf16, 4 in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

_FP32 = 4
_LOGIT_ROWS = (
    512  # rows whose fp32 logits stand beside the scores, kernels/plain/budget.py and kernels/triton/budget.py
)
_OUT_ROWS = 4096  # rows of dw and dh that are scaled in fp32 at once on the way out, _ROWS of ops/gradients.py
_TOKEN_BYTES = 64  # rows, labels, segments in the caller's and the groups' order, the order: 7 x 8; logp, weight: 2 x 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of a model that its memory depends on; counts of parameters, not bytes."""

    parameters: int
    trained: int
    head_parameters: int  # V D
    largest_layer: int  # of the layers that checkpointing makes again
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    tied: bool  # the head is the embedding, counted once
    head_trained: bool = True  # where it is frozen there is no dw

    def __post_init__(self) -> None:
        for name in ("parameters", "head_parameters", "largest_layer", "layers", "hidden", "heads", "intermediate"):
            _require("Shape", name, getattr(self, name), 1)
        _require("Shape", "trained", self.trained, 0, self.parameters)
        _require("Shape", "vocabulary", self.vocabulary, 1)
        if self.head_parameters % self.vocabulary:
            raise ValueError(
                f"Shape: want head_parameters a multiple of vocabulary {self.vocabulary}, got {self.head_parameters}"
            )

    @property
    def head_width(self) -> int:
        """The head's D, with few models another than hidden."""
        return self.head_parameters // self.vocabulary

    @classmethod
    def of(cls, config: PretrainedConfig, trained: int | None = None, *, trust_remote_code: bool = False) -> Shape:
        """Counts the parameters of the model that `config` makes, on the meta device: no memory, no random numbers.

        trained: all if None. Fewer, an adapter's, leave the head frozen; dataclasses.replace(shape, head_trained=True)
        says otherwise. A config without intermediate_size gets the widest side of a layer's weights.
        """
        text = config.get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        output = model.get_output_embeddings()
        blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if output is None or not blocks:
            raise ValueError(f"Shape.of: want layers that can be checkpointed and a head, got {type(model).__name__}")
        head = output.weight  # [V, D]
        widest = max(max(p.shape) for block in blocks for p in block.parameters())
        parameters = sum(p.numel() for p in model.parameters())
        return cls(
            parameters=parameters,
            trained=parameters if trained is None else trained,
            head_parameters=head.numel(),
            largest_layer=max(sum(p.numel() for p in block.parameters()) for block in blocks),
            layers=_number(text, "num_hidden_layers"),
            hidden=_number(text, "hidden_size"),
            heads=_number(text, "num_attention_heads"),
            intermediate=_number(text, "intermediate_size") if hasattr(text, "intermediate_size") else widest,
            vocabulary=head.shape[0],
            tied=model.get_input_embeddings().weight is head,
            head_trained=trained is None or trained == parameters,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """How the model is trained, as far as one rank's memory depends on it."""

    ranks: int
    stage: int  # of ZeRO, 0 to 3
    bf16: bool  # fp32 otherwise
    offload_optimizer: bool
    offload_param: bool
    checkpointing: bool
    sequences: int  # of a micro-batch: 2 x pairs + anchors
    length: int  # padding included
    scored: int  # N
    workspace_bytes: int
    reference_engine: bool
    optimizer_states: int = 2  # numbers a trained parameter: Adam 2, SGD 0
    eager: bool = False
    sdpa_mask: bool = False  # attention by sdpa with a padding mask
    buffer_bytes: int = 0  # what DeepSpeed is told to hold besides: reduce buckets, layers kept gathered

    def __post_init__(self) -> None:
        for name in ("ranks", "sequences", "length", "workspace_bytes"):
            _require("Run", name, getattr(self, name), 1)
        for name in ("optimizer_states", "buffer_bytes"):
            _require("Run", name, getattr(self, name), 0)
        _require("Run", "stage", self.stage, 0, 3)
        _require("Run", "scored", self.scored, 0, self.positions)
        if self.offload_param and self.stage != 3:
            raise ValueError(f"Run: want stage 3 for offload_param, got stage {self.stage}")
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("Run: want a stage from 1 to 3 for offload_optimizer, got stage 0")
        if self.sdpa_mask and self.eager:
            raise ValueError("Run: want sdpa_mask or eager, got both")

    @property
    def positions(self) -> int:
        """M."""
        return self.sequences * self.length

    @property
    def size(self) -> int:
        """e."""
        return 2 if self.bf16 else _FP32


class Estimate(NamedTuple):
    """Bytes. A layer that is made again in backward comes when the head's memory is gone: totals take the larger."""

    parts: tuple[tuple[str, int], ...]
    head_ours: int
    head_naive: int
    layer: int = 0  # 0 without checkpointing: the layers' activations are all in parts

    @property
    def total_ours(self) -> int:
        return sum(size for _, size in self.parts) + max(self.head_ours, self.layer)

    @property
    def total_naive(self) -> int:
        return sum(size for _, size in self.parts) + max(self.head_naive, self.layer)


def estimate(shape: Shape, run: Run) -> Estimate:
    """The peak of forward and backward of one micro-batch, from a GPU's first optimizer step on.

    Not in it: fragmentation, the libraries' own memory, what buffer_bytes leaves out, a layer's gradients on their way
    to their share, the optimizer step (activations are gone then), the reference's own passes (before the policy's).
    """
    parts = (
        ("weights", _weights(shape, run)),
        ("gradients", _gradients(shape, run)),
        ("optimizer states", _optimizer(shape, run)),
        ("reference weights", _reference(shape, run)),
        ("largest gathered layer", shape.largest_layer * run.size if run.stage == 3 else 0),
        ("buffers of DeepSpeed", run.buffer_bytes),
        ("activations of the body", _body(shape, run)),
    )
    layer = _layer(shape, run) if run.checkpointing else 0
    return Estimate(parts, _head_ours(shape, run), _head_naive(shape, run), layer)


def table(estimate: Estimate) -> list[str]:
    """A line for each part, both heads and both totals, in GiB."""
    rows = list(estimate.parts)
    if estimate.layer:
        rows.append(("one layer made again, after the head", estimate.layer))
    rows += [
        ("loss head, fused", estimate.head_ours),
        ("loss head, naive", estimate.head_naive),
        ("total, fused", estimate.total_ours),
        ("total, naive", estimate.total_naive),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}} {size / 2**30:>10.3f} GiB" for name, size in rows]


def _weights(shape: Shape, run: Run) -> int:
    """e a parameter, shared by the ranks at stage 3; none when offloaded."""
    return 0 if run.offload_param else run.size * _share(shape.parameters, run, run.stage >= 3)


def _gradients(shape: Shape, run: Run) -> int:
    """e a trained parameter, shared from stage 2 on, where the optimizer's offloading takes them along."""
    if run.offload_optimizer and run.stage >= 2:
        return 0
    return run.size * _share(shape.trained, run, run.stage >= 2)


def _optimizer(shape: Shape, run: Run) -> int:
    """4 a state and trained parameter, and 4 for the fp32 master copy, shared from stage 1 on; none when offloaded.

    In fp32 the weights are the master, but stages 1 and 2 of DeepSpeed copy them all the same.
    """
    if run.offload_optimizer:
        return 0
    numbers = run.optimizer_states + (run.bf16 or run.stage in (1, 2))
    return _FP32 * numbers * _share(shape.trained, run, run.stage >= 1)


def _reference(shape: Shape, run: Run) -> int:
    """A frozen engine with a model of the same shape, sharded and offloaded as the policy's weights are."""
    return _weights(shape, run) if run.reference_engine else 0


def _body(shape: Shape, run: Run) -> int:
    """What stands of the body when the head begins: of each layer all that it saves or, with checkpointing, its input,
    e D a position; and the last norm, as in _layer."""
    saved = run.size * shape.hidden * run.positions if run.checkpointing else _layer(shape, run)
    return shape.layers * saved + _norm(shape, run) * run.positions


def _layer(shape: Shape, run: Run) -> int:
    """What autograd saves in one block of Llama's kind; I intermediate, H heads, T length. For each position:

        two norms    input and 1 / root in fp32, 4 D + 4, normalised e D, output (what q, k, v or gate, up read) e D
        attention    q, k, v, output (what o reads): 4 e D
                     sdpa, flash: log-sum-exp, 4 H; sdpa makes a padding mask numbers, e T
                     eager: probabilities in fp32, 4 H T, and in bf16 a copy of them, 2 H T
        mlp          gate, act(gate), up, their product (what down reads): 4 e I

    k and v as wide as q: so they are where the mask makes transformers repeat heads that share them; without a mask
    sdpa keeps them narrow. Frozen norms and linears save less. Of a mixture of experts: as if it were dense.
    """
    e, D, T = run.size, shape.hidden, run.length
    scores = shape.heads * (_FP32 + (e if run.bf16 else 0)) * T if run.eager else shape.heads * _FP32
    mask = e * T if run.sdpa_mask else 0
    return run.positions * (2 * _norm(shape, run) + 4 * e * D + scores + mask + 4 * e * shape.intermediate)


def _norm(shape: Shape, run: Run) -> int:
    """Of one position: 4 D + 4 + 2 e D."""
    return _FP32 * (shape.hidden + 1) + 2 * run.size * shape.hidden


def _head_ours(shape: Shape, run: Run) -> int:
    """head + 4 V D (dw in fp32) + e M D (dh) + 64 N + the larger of

        forward     the workspace
        backward    dw and dh as they are handed out, e V D + e M D, in bf16 by way of 4096 rows in fp32, 4 x 4096 D

    without the terms of V D where the head is frozen. head: its weight, e V D, gathered at stage 3.
    """
    e, D, M = run.size, shape.head_width, run.positions
    dw, dh = shape.head_parameters * shape.head_trained, M * D
    rows = min(_OUT_ROWS, max(shape.vocabulary * shape.head_trained, M)) if run.bf16 else 0
    made = _FP32 * dw + e * dh + _TOKEN_BYTES * run.scored
    return _gathered_head(shape, run) + made + max(_workspace(shape, run), e * (dw + dh) + _FP32 * rows * D)


def _workspace(shape: Shape, run: Run) -> int:
    """workspace_bytes, or less where all N tokens need less: scores e N V, gathered h, dh, scaled h (3 e + 8) N D, and
    fp32 logits of 512 tokens, or of as many as fit an eighth of workspace_bytes."""
    e, D, V, N = run.size, shape.head_width, shape.vocabulary, run.scored
    logits = min(_FP32 * min(N, _LOGIT_ROWS) * V, run.workspace_bytes // 8)
    return min(run.workspace_bytes, e * N * V + (3 * e + 2 * _FP32) * N * D + logits)


def _head_naive(shape: Shape, run: Run) -> int:
    """head + the larger of two moments of log_softmax((h @ w.T).float()).gather(...).sum().backward(), all M positions:

        log_softmax's backward    its output, its upstream gradient, the gradient it makes, all fp32: 12 M V
        the product's backward    the logits' gradient, and dh and dw made of it: e (M V + M D + V D)

    In forward the logits, their fp32 copy and log_softmax's output are 10 M V in bf16, 8 M V in fp32: less. Whoever
    keeps the logits until backward, as a model's output does, has e M V more, which is not counted.
    """
    e, D, V, M = run.size, shape.head_width, shape.vocabulary, run.positions
    dw = shape.head_parameters * shape.head_trained
    return _gathered_head(shape, run) + max(3 * _FP32 * M * V, e * (M * V + M * D + dw))


def _gathered_head(shape: Shape, run: Run) -> int:
    return run.size * shape.head_parameters if run.stage == 3 else 0


def _share(numbers: int, run: Run, shared: bool) -> int:
    return -(-numbers // run.ranks) if shared else numbers


def _number(config: PretrainedConfig, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int):
        raise ValueError(f"Shape.of: want a config with the number {name}, got {type(config).__name__} with {value!r}")
    return value


def _require(where: str, name: str, value: int, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        wanted = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{where}: want {name} an integer {wanted}, got {value!r}")
