"""A model's body as autograd runs it, traced on fake tensors: what it keeps, and what it computes, without memory.

The real model of transformers goes forward and backward once, on tensors that have shapes and storages but no bytes. A
ledger under every operation of torch follows the storages that live, counts the operations of the products by torch's
own formulas, and the bytes that the others read and write. Two and three layers are traced, and two and four sequences:
layers are alike, and without an attention mask everything but the attention's operations is linear in both. (A peak is
a maximum, so it is linear as long as the same moment has it: far below the traced positions it is another one, and the
plan then says too little, by no more than a gradient of one layer's weights.)

The body is what stands between the embedding and the head; dh is given. Attention keeps what a flash
kernel keeps: q, k, v, the output and a log-sum-exp; a soft cap inside of it and a sliding window change nothing of that
and are left out.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AttentionInterface, AutoModel, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tools import models

UNMASKED = "expo_plan"  # sdpa under a name that transformers makes no mask for, as on a GPU for rows without padding
LAYERS = (2, 3)
SEQUENCES = (
    2,
    4,
)  # enough positions that a layer's intermediates outweigh a gradient of its weights, as at any size of use
_aten = torch.ops.aten


class Traced(NamedTuple):
    """Bytes above weights and gradients; operations; bytes. *_back: of backward, with what is computed again."""

    forward: float  # at the peak of forward
    standing: float  # when the head begins, its input included
    backward: float  # at the peak of backward, dh included
    products: float
    products_back: float
    attention: float  # of the causal half
    attention_back: float
    moved: float  # read and written by all that is neither product, attention nor view
    moved_back: float


class Body(NamedTuple):
    """What was traced at both ends of LAYERS and SEQUENCES, of `length` positions each."""

    length: int
    corners: tuple[tuple[Traced, Traced], tuple[Traced, Traced]]  # by layers, then by sequences

    def at(self, layers: int, sequences: int, length: int) -> Traced:
        """Another number of layers and positions, on the plane through the corners."""
        u = (layers - LAYERS[0]) / (LAYERS[1] - LAYERS[0])
        v = (sequences * length / self.length - SEQUENCES[0]) / (SEQUENCES[1] - SEQUENCES[0])
        (a, b), (c, d) = self.corners
        fields = zip(a, b, c, d, strict=True)
        at = Traced(*(p + u * (r - p) + v * (q - p) + u * v * (s - r - q + p) for p, q, r, s in fields))
        longer = length / self.length  # a position attends to as many more
        return at._replace(attention=at.attention * longer, attention_back=at.attention_back * longer)


@functools.cache
def body(model: str, *, bf16: bool, checkpointing: bool, length: int) -> Body:
    def of(layers: int, sequences: int) -> Traced:
        config = models.config(model, layers)
        return trace(config, sequences, length, bf16=bf16, checkpointing=checkpointing)

    (few, more), (one, two) = LAYERS, SEQUENCES
    return Body(length, ((of(few, one), of(few, two)), (of(more, one), of(more, two))))


def trace(config: PretrainedConfig, sequences: int, length: int, *, bf16: bool, checkpointing: bool) -> Traced:
    """Every layer of the config, at these very sizes."""
    AttentionInterface.register(UNMASKED, _unmasked)
    dtype = torch.bfloat16 if bf16 else torch.float32
    with FakeTensorMode():
        model = AutoModel.from_config(config, dtype=dtype, attn_implementation=UNMASKED).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # a step adds to gradients that are there
        embedded = torch.empty(sequences, length, config.hidden_size, dtype=dtype, requires_grad=True)
        with _Ledger(_standing(model), embedded) as ledger:
            hidden = model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            forward, standing = ledger.turn(), ledger.live
            _Head.apply(hidden).backward()
            backward = ledger.turn()
    f, b = forward, backward
    return Traced(
        f.peak, standing, b.peak, f.products, b.products, f.attention, b.attention, f.moved, b.moved
    )  # fmt: skip


class _Head(torch.autograd.Function):
    """Keeps nothing and hands out dh, which nobody holds after its use."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.like = (hidden.shape, hidden.dtype)
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        shape, dtype = ctx.like
        return upstream.new_empty(shape, dtype=dtype)


def _unmasked(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    softcap: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [S, H, T, d], key and value [S, H', T, d] -> [S, T, H, d]."""
    assert attention_mask is None, "transformers makes no mask for a name that it does not know"
    return sdpa_attention_forward(module, query, key, value, attention_mask, **others)


def _standing(model: torch.nn.Module) -> Iterator[Tensor]:
    yield from model.buffers()
    for p in model.parameters():
        yield p
        if p.grad is not None:
            yield p.grad


class _Turn(NamedTuple):
    peak: float
    products: float
    attention: float
    moved: float


class _Ledger(TorchDispatchMode):
    """Under every operation: the storages that live, the operations of products, the bytes that others move."""

    def __init__(self, known: Iterable[Tensor], given: Tensor) -> None:
        """known: what is not counted; given: what is, to the end."""
        super().__init__()
        self.live = self.peak = given.nbytes
        self.products = self.attention = self.moved = 0.0
        self.kept = [*known, given]  # so that no storage of theirs is ever another's
        self.seen = {x.untyped_storage()._cdata for x in self.kept}

    def turn(self) -> _Turn:
        """What was counted since the last turn; the peak begins again at what lives."""
        made = _Turn(self.peak, self.products, self.attention, self.moved)
        self.peak, self.products, self.attention, self.moved = self.live, 0.0, 0.0, 0.0
        return made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        fresh = sum(self._new(x) for x in written)
        self._count(func, args, given, out, written, bool(fresh))
        return out

    def _new(self, x: Tensor) -> int:
        """1 for a storage not seen before; it is followed until it is gone."""
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return 0
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)
        return 1

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, written: list[Tensor], fresh: bool) -> None:
        packet = func._overloadpacket
        if packet is _aten._scaled_dot_product_flash_attention_for_cpu:
            self.attention += sdpa_flop_count(*(x.shape for x in args[:3])) / 2
        elif packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.attention += sdpa_backward_flop_count(*(x.shape for x in args[:4])) / 2
        elif packet in flop_registry:
            self.products += flop_registry[packet](*args, **kwargs, out_val=out)
        elif (fresh or func._schema.is_mutable) and "empty" not in packet.__name__:
            read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.moved += sum(_bytes(x) for x in (*read, *written))


def _bytes(x: Tensor) -> int:
    """Of an expanded tensor those that are there."""
    return min(x.nbytes, x.untyped_storage().nbytes())
