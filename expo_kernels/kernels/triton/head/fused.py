"""The head's product with the exponential epilogue: h, w -> E' and the sums of every row, without the logits.

    z = softcap tanh(a / softcap) or a,  a = scale (h w^T + bias)        E = exp(z - m)

Program (row block, column of tiles) reads its rows of h and its rows of w, and writes one tile of E' = E t with 0 at
the label (where E' is wanted), and for each of its rows the tile's sum of E without the label, its largest z and, if
the label is in it, E_y. Sums over tiles are merged in order by merge.py: no atomics. The offset m must be known
before: the label's logit by labels.py, or, for the rows that merge.py flags, their true maximum. `redo` runs only the
row blocks that hold a flagged row, and writes only flagged rows.

n rows, V vocabulary, D hidden, J tiles a row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from expo_kernels.kernels.contract import Head, accumulator
from expo_kernels.kernels.triton.device import capped, dot, slices_of, slope, tile_at
from expo_kernels.kernels.triton.tuning import Tiles

# the logit of a column that is none: exp of it is 0, and 0 times it is 0, which 0 * -inf is not
NOTHING = tl.constexpr(-1e30)


class Partials(NamedTuple):
    """What the tiles of a row leave for merge.py; n rows, J tiles."""

    label_exp: Tensor  # [n] E_y from the tile that holds it; NaN where none does, so a bad label poisons its row
    rest: Tensor  # [n, J] sums of E, without the label
    peak: Tensor  # [n, J] largest z
    moment: Tensor | None  # [n, J] sums of E (z - m), the label included, for the entropy


def new_partials(h: Tensor, V: int, tiles: Tiles, stats: bool) -> Partials:
    n, J, dtype = h.shape[0], triton.cdiv(V, tiles.columns), accumulator(h.dtype)
    rest, peak = h.new_empty(n, J, dtype=dtype), h.new_empty(n, J, dtype=dtype)
    moment = h.new_empty(n, J, dtype=dtype) if stats else None
    return Partials(h.new_full((n,), float("nan"), dtype=dtype), rest, peak, moment)


def head_tiles(
    h: Tensor, y: Tensor, head: Head, offset: Tensor, flagged: Tensor | None, e: Tensor | None, out: Partials,
    tiles: Tiles,
) -> None:  # fmt: skip
    """h [n, D], y [n], offset [n] -> out, and e [n, V] where given. flagged [n] int8: a redo of those rows."""
    (n, D), (V, _) = h.shape, head.w.shape
    assert h.stride(1) == head.w.stride(1) == 1, "rows are contiguous"
    row_blocks, J = triton.cdiv(n, tiles.rows), triton.cdiv(V, tiles.columns)
    _head_tiles[(row_blocks * J,)](
        h, head.w, head.bias, y, offset, flagged, e, *out,
        n, V, J, h.stride(0), head.w.stride(0), 0 if e is None else e.stride(0),
        SCALE=head.scale, SOFTCAP=head.softcap, D=D, GROUP=tiles.group, ACC=_wide(h.dtype),
        BN=tiles.rows, BV=tiles.columns, BD=tiles.depth, SLICES=tiles.slices,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _wide(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit(do_not_specialize=["n"])
def _head_tiles(
    h_ptr, w_ptr, bias_ptr, y_ptr, offset_ptr, flagged_ptr,           # in  [n, D], [V, D], [V], [n], [n], [n]
    e_ptr, label_exp_ptr, rest_ptr, peak_ptr, moment_ptr,             # out [n, V], [n], then [n, J]
    n, V, J, stride_hn, stride_wv, stride_en,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr, ACC: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    i, j = tile_at(tl.program_id(0), tl.cdiv(n, BN), J, GROUP)
    first = i.to(tl.int64) * BN
    mask_n = tl.arange(0, BN) < n - first
    if flagged_ptr is not None:
        mask_n = tl.load(flagged_ptr + first + tl.arange(0, BN), mask=mask_n, other=0) != 0
        if tl.max(mask_n.to(tl.int32), 0) == 0:
            return
    acc = _product(
        h_ptr + first * stride_hn, w_ptr + j.to(tl.int64) * BV * stride_wv, bias_ptr, j, n - first, V, stride_hn,
        stride_wv, SOFTCAP, D, ACC, BN, BV, BD,
    )  # fmt: skip
    epilogue(
        acc, first, mask_n, j, y_ptr, offset_ptr, e_ptr, stride_en, None, label_exp_ptr, rest_ptr, peak_ptr, moment_ptr,
        V, J, SCALE, SOFTCAP, BN, BV, SLICES,
    )  # fmt: skip


@triton.jit
def _product(h_ptr, w_ptr, bias_ptr, j, rows, V, stride_hn, stride_wv, SOFTCAP: tl.constexpr,
             D: tl.constexpr, ACC: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """h w^T + bias of column tile j, [BN, BV]; the pointers stand at its first row of each. Within a tile offsets are
    small, hence int32. Rows past the end repeat the last one; the epilogue masks them."""
    last_n, last_v = tl.minimum(rows, BN).to(tl.int32) - 1, tl.minimum(V - j * BV, BV).to(tl.int32) - 1
    offs_d = tl.arange(0, BD)
    h_tile = h_ptr + (tl.minimum(tl.arange(0, BN), last_n)[:, None] * stride_hn + offs_d[None, :])
    w_tile = w_ptr + (tl.minimum(tl.arange(0, BV), last_v)[None, :] * stride_wv + offs_d[:, None])
    acc = start(bias_ptr, j, V, SOFTCAP, ACC, BN, BV)
    for d in range(0, D, BD):
        if D % BD == 0:
            h, w = tl.load(h_tile), tl.load(w_tile)
        else:
            mask_d = d + offs_d < D
            h = tl.load(h_tile, mask=mask_d[None, :], other=0.0)
            w = tl.load(w_tile, mask=mask_d[:, None], other=0.0)
        acc = dot(h, w, acc)
        h_tile += BD
        w_tile += BD
    return acc


@triton.jit
def start(bias_ptr, j, V, SOFTCAP: tl.constexpr, ACC: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr):
    """What a tile's sums begin with: the bias, or 0."""
    acc = tl.zeros([BN, BV], ACC)
    if bias_ptr is not None:
        offs_v = j * BV + tl.arange(0, BV)
        bias = tl.load(bias_ptr + offs_v, mask=offs_v < V, other=0.0).to(ACC)
        if SOFTCAP is None:
            # a bias of -inf takes a column out of the vocabulary; under a soft cap it is NaN, as any infinity is
            bias = tl.where(bias < NOTHING, NOTHING, bias)
        acc += bias[None, :]
    return acc


@triton.jit
def epilogue(
    acc, first, mask_n, j, y_ptr, offset_ptr, e_ptr, stride_en, e_desc, label_exp_ptr, rest_ptr, peak_ptr,
    moment_ptr, V, J, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
    SLICES: tl.constexpr,
):  # fmt: skip
    """acc = h w^T + bias [BN, BV] of the rows from `first` on and of column tile j -> E', and what the tile leaves of
    each row. A slice of columns at a time, so that temporaries of the whole tile never stand in registers."""
    offs_n = first + tl.arange(0, BN)
    y = (tl.load(y_ptr + offs_n, mask=mask_n, other=-1) - j * BV).to(tl.int32)
    m = tl.load(offset_ptr + offs_n, mask=mask_n, other=0.0)
    label_exp, rest, moment = tl.zeros([BN], acc.dtype), tl.zeros([BN], acc.dtype), tl.zeros([BN], acc.dtype)
    peak = tl.full([BN], float("-inf"), acc.dtype)
    parts = slices_of(acc, SLICES)
    WIDTH: tl.constexpr = BV // SLICES
    for s in tl.static_range(SLICES):
        v = j * BV + s * WIDTH
        z, is_label = _slice_logits(parts[s], v, y - s * WIDTH, V, SCALE, SOFTCAP, WIDTH)
        peak = tl.maximum(peak, tl.max(z, 1))
        below = z - m[:, None]
        e = tl.exp(below)
        if moment_ptr is not None:
            moment += tl.sum(e * below, 1)
        label_exp += tl.sum(tl.where(is_label, e, 0.0), 1)
        e = tl.where(is_label, 0.0, e)
        rest += tl.sum(e, 1)
        if SOFTCAP is not None:
            e *= slope(z, SOFTCAP)  # NaN past the vocabulary, where nothing is stored
        # the downcast of scoring
        if e_desc is not None:
            e_desc.store([first.to(tl.int32), v], e.to(e_desc.dtype))
        if e_ptr is not None:
            tile = e_ptr + first * stride_en + v.to(tl.int64)
            at = tl.arange(0, BN)[:, None] * stride_en + tl.arange(0, WIDTH)[None, :]
            mask = mask_n[:, None] & (tl.arange(0, WIDTH) < V - v)[None, :]
            tl.store(tile + at, e.to(e_ptr.dtype.element_ty), mask=mask)
    at_n = offs_n * J + j
    tl.store(label_exp_ptr + offs_n, label_exp, mask=mask_n & (y >= 0) & (y < tl.minimum(V - j * BV, BV)))
    tl.store(rest_ptr + at_n, rest, mask=mask_n)
    tl.store(peak_ptr + at_n, peak, mask=mask_n)
    if moment_ptr is not None:
        tl.store(moment_ptr + at_n, moment, mask=mask_n)


@triton.jit
def _slice_logits(acc, v, y, V, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WIDTH: tl.constexpr):
    """z of the columns from v on, nothing past the vocabulary, before any reduction; and where the label is."""
    offs_v = tl.arange(0, WIDTH)
    mask_v = offs_v < V - v
    if SCALE != 1.0:
        acc = acc * SCALE
    z = tl.where(mask_v[None, :], capped(acc, SOFTCAP), NOTHING)
    return z, offs_v[None, :] == y[:, None]
