"""Every launch that the backend makes, at real shapes: Llama-3's head, Gemma-2's soft cap, an odd D and V."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton import product
from expo_kernels.kernels.triton.gradient import columns, scale, sparse
from expo_kernels.kernels.triton.head import fused, fused_persistent, labels, merge, rows
from expo_kernels.kernels.triton.sequences import pairs, segments
from expo_kernels.kernels.triton.tuning import Card
from expo_kernels.types import PairForm


class Launch(NamedTuple):
    variant: str
    call: Callable[[], object]
    main_loop: bool = False  # a tensor-core product: the gates ask for its instructions
    copies: bool = True  # and for asynchronous copies in it, where the card has them
    quick: bool = False  # part of the representative subset
    field: str = ""  # of a Card: the tile it runs
    rare: bool = False  # not in a usual step, so one program a multiprocessor is enough

    @property
    def usual(self) -> bool:
        """Of a step with Llama-3's head, a soft cap's, or our own bf16 product."""
        return not self.rare and self.variant.startswith(("llama", "gemma", "bf16"))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(card: Card) -> Iterator[Launch]:
    yield from _heads(card)
    yield from _products(card)
    yield from _rows(card)
    yield from _sparse(card)
    yield from _small(card)


class _Case(NamedTuple):
    n: int
    D: int
    V: int
    dtype: torch.dtype = torch.bfloat16
    softcap: float | None = None
    bias: bool = False

    def head(self) -> Head:
        return Head(
            meta(self.V, self.D, dtype=self.dtype), meta(self.V, dtype=self.dtype) if self.bias else None, self.softcap,
            0.125 if self.bias else 1.0,
        )  # fmt: skip


LLAMA, GEMMA = _Case(4096, 4096, 128256), _Case(4096, 2304, 256000, softcap=30.0)
BIASED = _Case(4000, 2560, 51200, bias=True)
ODD = _Case(1000, 2050, 50257, bias=True, softcap=30.0)
FP32 = _Case(4096, 1024, 32000, torch.float32)
ODD_ROWS = 1000  # of a chunk that ends within a tile of dw's product


def _heads(card: Card) -> Iterator[Launch]:
    for name, case in (("llama", LLAMA), ("gemma, soft cap", GEMMA), ("bias and scale", BIASED), ("fp32", FP32)):
        for store, stats in ((True, False), (False, False), (False, True)):
            kind = "E'" if store else "forward only, statistics" if stats else "forward only"
            ours, quick = case.dtype == torch.bfloat16, name == "llama" and not stats
            field = "small" if not ours else "head" if case.softcap is None else "capped"
            call = partial(_head, card, case, store, stats, False)
            yield Launch(f"{name}, {kind}", call, main_loop=ours, quick=quick, field=field, rare=stats)
            if card.persistent is not None and field == "head":
                call = partial(_persistent, card, case, store, stats)
                yield Launch(f"{name}, {kind}", call, main_loop=True, quick=quick, field="persistent", rare=stats)
    redo, odd = partial(_head, card, LLAMA, True, False, True), partial(_head, card, ODD, True, False, False)
    yield Launch("llama, redo", redo, main_loop=True, field="head", rare=True)
    yield Launch("odd D and V, E'", odd, main_loop=True, copies=False, field="small")


def _head(card: Card, case: _Case, store: bool, stats: bool, redo: bool) -> None:
    h, model, flagged = meta(case.n, case.D, dtype=case.dtype), case.head(), meta(case.n, dtype=torch.int8)
    tiles = card.head_tiles(model.softcap, h, model.w)
    out = fused.new_partials(h, case.V, tiles, stats)
    fused.head_tiles(h, _labels(case), model, meta(case.n), flagged if redo else None, _e(case, store), out, tiles)


def _persistent(card: Card, case: _Case, store: bool, stats: bool) -> None:
    assert card.persistent is not None, "asked for only where the card has it"
    h, model = meta(case.n, case.D, dtype=case.dtype), case.head()
    out = fused.new_partials(h, case.V, card.persistent, stats)
    e = _e(case, store)
    fused_persistent.head_tiles_persistent(h, _labels(case), model, meta(case.n), e, out, card.persistent)


def _labels(case: _Case) -> Tensor:
    return meta(case.n, dtype=torch.int64)


def _e(case: _Case, store: bool) -> Tensor | None:
    return meta(case.n, -(-case.V // 16) * 16, dtype=case.dtype)[:, : case.V] if store else None


def _products(card: Card) -> Iterator[Launch]:
    n, D, V = 4096, 4096, 128256
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        main = dtype != torch.float32
        e, h, w = meta(n, V, dtype=dtype), meta(n, D, dtype=dtype), meta(V, D, dtype=dtype)
        for kind, a, b, out in (
            ("logits", h, w.T, meta(n, V)), ("dh", e, w, meta(n, D)), ("dw", e.T, h, meta(V, D)),
            ("dw, odd rows", e[:ODD_ROWS].T, h[:ODD_ROWS], meta(V, D)),
        ):  # fmt: skip
            add = kind.startswith("dw")
            call = partial(product.tiled_product, a, b, out, card.product_tiles(a, b), add=add)
            field, quick = "product" if main else "small", name == "bf16" and kind == "dw"
            yield Launch(f"{name}, {kind}", call, main_loop=main, quick=quick, field=field)
            if main and card.product_persistent is not None:
                call = partial(product.product_persistent, a, b, out, card.product_persistent, add=add)
                yield Launch(f"{name}, {kind}", call, main_loop=True, quick=quick, field="product_persistent")


def _rows(card: Card) -> Iterator[Launch]:
    for case, name in ((LLAMA, "llama"), (GEMMA, "gemma, soft cap"), (BIASED, "bias and scale")):
        for dtype in (torch.bfloat16, torch.float16, None):
            e = None if dtype is None else meta(512, case.V, dtype=dtype)
            like = meta(512, case.D, dtype=dtype or torch.bfloat16)
            out = merge.new_results(like, stats=dtype is None)
            call = partial(
                rows.score_logits, meta(512, case.V), meta(512, dtype=torch.int64), case.head(), e, like, out, card
            )
            kind = "forward only, statistics" if dtype is None else f"E' in {str(dtype).removeprefix('torch.')}"
            quick = name == "llama" and dtype == torch.bfloat16
            # no model that is known has a soft cap and fp16; on sm_100 tanh takes the registers of a fourth program
            rare = dtype is None or (case.softcap is not None and (dtype == torch.float16 or card.name == "sm_100"))
            yield Launch(f"{name}, {kind}", call, quick=quick, field="walk", rare=rare)


def _sparse(card: Card) -> Iterator[Launch]:
    """A block of rows that keeps a sixteenth of the columns; D odd, too, where tiles do not begin at whole vectors."""
    n, V, k = 512, 128256, 8192
    kernels, columns = sparse.Kernels(), meta(k, dtype=torch.int64)
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        main = dtype != torch.float32
        e, kept = meta(n, V, dtype=dtype), meta(n, k, dtype=dtype)
        yield Launch(name, partial(kernels.column_sums, e, meta(n), meta(n)))
        yield Launch(name, partial(kernels.group_sums, e, meta(V, dtype=torch.int64), 64))
        for D in (4096, 2050):
            w, h = meta(V, D, dtype=dtype), meta(n, D, dtype=dtype)
            tiles = card.product_tiles(kept, w)
            dh = partial(sparse.gathered_product, kept, w, columns, meta(n, D), tiles)
            dw = partial(sparse.scattered_product, kept, h, columns, meta(k), meta(V, D), tiles)
            quick = main and D == 4096
            yield Launch(f"{name}, D {D}, dh", dh, main_loop=main, copies=D == 4096, quick=quick)
            yield Launch(f"{name}, D {D}, dw", dw, main_loop=main, copies=D == 4096, quick=quick)


def _small(card: Card) -> Iterator[Launch]:
    n, D, V = 4096, 4096, 128256
    h, w, y = meta(n, D, dtype=torch.bfloat16), meta(V, D, dtype=torch.bfloat16), meta(n, dtype=torch.int64)
    numbers, model = meta(n), Head(w, None, None, 1.0)
    for stats in (False, True):
        partials = fused.new_partials(h, V, card.head, stats)
        out = merge.new_results(h, stats)
        call = partial(merge.merge, partials, numbers, numbers, meta(n, dtype=torch.int8), None, out, redo=stats)
        yield Launch("statistics" if stats else "", call)
    yield Launch("", partial(labels.label_logits, h, y, model))
    yield Launch("", partial(labels.scatter_labels, meta(V, D), meta(V), y, h, numbers))
    yield Launch("", partial(scale.scaled_rows, h, numbers, None))
    yield Launch("", partial(scale.finish_dh, meta(n, D), numbers, numbers, y, w, None))
    yield Launch("", partial(columns.add_columns, meta(V), meta(n, V, dtype=torch.bfloat16), numbers))
    offsets, P = meta(129, dtype=torch.int64), 64
    yield Launch("", partial(segments.segment_sum, numbers, offsets))
    for name in pairs.NAMES:
        form = PairForm(name, 0.1, 0.05, True, 2.0)
        reference = meta(2, P) if name == "expo_reg" else None
        lengths = meta(2, P, dtype=torch.int64)
        pair = partial(pairs.pair_terms, form, numbers, numbers, offsets, lengths, reference)
        yield Launch(name, pair, quick=True)
