"""The sparse gradient's operations on rows and columns. No atomics: a block's columns are distinct, and the blocks come
one after the other.

n rows of a block, V columns of which k are kept, D hidden; e [n, V] the stored exponentials with contiguous rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from expo_kernels.kernels.contract import accumulator
from expo_kernels.kernels.triton.device import dot, tile_at
from expo_kernels.kernels.triton.tuning import card_for
from expo_kernels.kernels.triton.tuning.types import Tiles

ROWS, COLUMNS = 32, 128  # of the column sums
GROUP_ROWS, GROUP_COLUMNS = 32, 64  # of the group sums
WHOLE = 256  # what lists are padded to: no tile is wider, so loads of kept entries want no mask along their rows
SLICES = 32  # programs that share a row's columns there


class Kernels:
    """crowd.Parts."""

    def column_sums(self, e: Tensor, f: Tensor, g: Tensor) -> Tensor:
        n, V = e.shape
        out = f.new_empty(3, V)
        _column_sums[(triton.cdiv(V, COLUMNS),)](e, f, g, out, n, V, e.stride(0), BN=ROWS, BV=COLUMNS, num_warps=4)
        return out

    def group_sums(self, e: Tensor, group: Tensor, groups: int) -> Tensor:
        """A product with the groups' indicators, which are exact in every format; slices are added in order."""
        n, V = e.shape
        width, share = (
            triton.next_power_of_2(max(groups, 16)),
            triton.cdiv(triton.cdiv(V, SLICES), GROUP_COLUMNS) * GROUP_COLUMNS,
        )
        slices = triton.cdiv(V, share)
        out = e.new_empty(slices, n, width, dtype=accumulator(e.dtype))
        _group_sums[(triton.cdiv(n, GROUP_ROWS), slices)](
            e,
            group,
            out,
            n,
            V,
            share,
            e.stride(0),
            BN=GROUP_ROWS,
            BV=GROUP_COLUMNS if e.element_size() == 2 else GROUP_COLUMNS // 4,
            GROUPS=width,
            num_warps=8,
        )
        return out.sum(0)[:, :groups]

    def add_products(
        self, e: Tensor, columns: Tensor, weight: Tensor | None, w: Tensor, scaled_h: Tensor, dh: Tensor | None,
        dw: Tensor | None, db: Tensor | None, factor: Tensor,
    ) -> None:  # fmt: skip
        if not columns.shape[0]:
            return
        # a weight is a power of two, exact in bf16 and in any wider format; fp16 could overflow
        narrow = torch.float32 if e.dtype == torch.float16 else e.dtype
        k = columns.shape[0]
        padded = pad(columns, (0, -k % WHOLE))  # column 0, with a weight of nothing
        kept = e.index_select(1, padded).to(narrow)
        kept[:, k:] = 0
        w = w.to(narrow) if w.dtype != narrow else w
        tiles = card_for(e.device).product_tiles(kept, w)
        if dh is not None:
            weighted = kept if weight is None else kept * pad(weight, (0, -k % WHOLE)).to(narrow)
            gathered_product(weighted, w, padded, dh, tiles)
        if dw is not None:
            scattered_product(kept, scaled_h.to(narrow), columns, weight, dw, tiles)
        if db is not None:
            sums = factor @ kept[:, :k].to(factor.dtype)
            db.index_add_(0, columns, sums if weight is None else sums * weight)


def gathered_product(kept: Tensor, w: Tensor, columns: Tensor, dh: Tensor, tiles: Tiles) -> None:
    """kept [n, k], w [V, D], columns [k], k a multiple of WHOLE -> dh [n, D] += kept w[columns]."""
    assert kept.shape[1] == columns.shape[0] and kept.shape[1] % WHOLE == 0 and WHOLE % tiles.depth == 0
    (n, k), D = kept.shape, w.shape[1]
    _gathered_product[_grid(n, D, tiles)](
        kept, w, columns, dh, n, D, k, kept.stride(0), w.stride(0), dh.stride(0),
        GROUP=tiles.group, BM=tiles.rows, BN=tiles.columns, BK=tiles.depth,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def scattered_product(
    kept: Tensor, scaled_h: Tensor, columns: Tensor, weight: Tensor | None, dw: Tensor, tiles: Tiles
) -> None:
    """kept [n, k or more], scaled_h [n, D], columns and weight [k] -> dw[columns] += weight kept^T scaled_h."""
    n, k, D = kept.shape[0], columns.shape[0], scaled_h.shape[1]
    assert kept.shape[1] % WHOLE == 0 and WHOLE % tiles.rows == 0
    _scattered_product[_grid(k, D, tiles)](
        kept, scaled_h, columns, weight, dw, k, D, n, kept.stride(0), scaled_h.stride(0), dw.stride(0),
        GROUP=tiles.group, BM=tiles.rows, BN=tiles.columns, BK=tiles.depth,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _grid(rows: int, columns: int, tiles: Tiles) -> tuple[int]:
    return (triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns),)


@triton.jit(do_not_specialize=["n"])
def _column_sums(
    e_ptr, f_ptr, g_ptr, out_ptr,                 # in  [n, V], [n], [n]; out [3, V]
    n, V, stride_en, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    offs_v = tl.program_id(0) * BV + tl.arange(0, BV)
    mask_v = offs_v < V
    squares = tl.zeros([BV], out_ptr.dtype.element_ty)
    sums = tl.zeros([BV], out_ptr.dtype.element_ty)
    largest = tl.zeros([BV], out_ptr.dtype.element_ty)
    for first in range(0, n, BN):
        offs_n = first + tl.arange(0, BN).to(tl.int64)
        mask_n = offs_n < n
        f = tl.load(f_ptr + offs_n, mask=mask_n, other=0.0)
        g = tl.load(g_ptr + offs_n, mask=mask_n, other=0.0)
        at = e_ptr + offs_n[:, None] * stride_en + offs_v[None, :]
        e = tl.load(at, mask=mask_n[:, None] & mask_v[None, :], other=0.0).to(f.dtype)
        weighted = e * f[:, None]
        squares += tl.sum(weighted * weighted, 0)
        sums += tl.sum(e * g[:, None], 0)
        largest = tl.maximum(largest, tl.max(weighted, 0))
    wide = tl.cast(V, tl.int64)
    tl.store(out_ptr + offs_v, squares, mask=mask_v)
    tl.store(out_ptr + wide + offs_v, sums, mask=mask_v)
    tl.store(out_ptr + 2 * wide + offs_v, largest, mask=mask_v)


@triton.jit(do_not_specialize=["n", "share"])
def _group_sums(
    e_ptr, group_ptr, out_ptr,                    # in  [n, V], [V]; out [slices, n, GROUPS]
    n, V, share, stride_en, BN: tl.constexpr, BV: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Program (block of rows, slice of `share` columns)."""
    offs_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    slice_ = tl.program_id(1).to(tl.int64)
    mask_n = offs_n < n
    groups = tl.arange(0, GROUPS)
    acc = tl.zeros([BN, GROUPS], out_ptr.dtype.element_ty)
    for first in range(0, share, BV):
        offs_v = slice_ * share + first + tl.arange(0, BV)
        mask_v = offs_v < V
        at = e_ptr + offs_n[:, None] * stride_en + offs_v[None, :]
        e = tl.load(at, mask=mask_n[:, None] & mask_v[None, :], other=0.0)
        group = tl.load(group_ptr + offs_v, mask=mask_v, other=-1)
        member = tl.where(group[:, None] == groups[None, :], 1.0, 0.0).to(e.dtype)
        acc = dot(e, member, acc)
    at = out_ptr + (slice_ * n + offs_n[:, None]) * GROUPS + groups[None, :]
    tl.store(at, acc, mask=mask_n[:, None])


@triton.jit(do_not_specialize=["M", "K"])
def _gathered_product(
    a_ptr, w_ptr, columns_ptr, out_ptr,           # in  [M, K], [V, N], [K]; in and out [M, N]
    M, N, K, stride_am, stride_wv, stride_om,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i, j = tile_at(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    offs_m = i.to(tl.int64) * BM + tl.arange(0, BM)
    offs_n = j.to(tl.int64) * BN + tl.arange(0, BN)
    mask_m, mask_n = (offs_m < M)[:, None], (offs_n < N)[None, :]
    acc = tl.zeros([BM, BN], out_ptr.dtype.element_ty)
    for k in range(0, K, BK):
        offs_k = k + tl.arange(0, BK)
        columns = tl.load(columns_ptr + offs_k)
        a = tl.load(a_ptr + offs_m[:, None] * stride_am + offs_k[None, :], mask=mask_m, other=0.0)
        b = tl.load(w_ptr + columns[:, None] * stride_wv + offs_n[None, :], mask=mask_n, other=0.0)
        acc = dot(a, b, acc)
    at = out_ptr + offs_m[:, None] * stride_om + offs_n[None, :]
    tl.store(at, tl.load(at, mask=mask_m & mask_n, other=0.0) + acc, mask=mask_m & mask_n)


@triton.jit(do_not_specialize=["M", "K"])
def _scattered_product(
    a_ptr, h_ptr, columns_ptr, weight_ptr, out_ptr,  # in  [K, M], [K, N], [M], [M]; in and out [V, N]
    M, N, K, stride_ak, stride_hk, stride_ov,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i, j = tile_at(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    offs_m = i.to(tl.int64) * BM + tl.arange(0, BM)
    offs_n = j.to(tl.int64) * BN + tl.arange(0, BN)
    mask_m, mask_n = offs_m < M, (offs_n < N)[None, :]
    acc = tl.zeros([BM, BN], out_ptr.dtype.element_ty)
    for k in range(0, K, BK):
        offs_k = (k + tl.arange(0, BK)).to(tl.int64)
        mask_k = offs_k < K
        a = tl.load(a_ptr + offs_k[None, :] * stride_ak + offs_m[:, None], mask=mask_k[None, :], other=0.0)
        b = tl.load(h_ptr + offs_k[:, None] * stride_hk + offs_n[None, :], mask=mask_k[:, None] & mask_n, other=0.0)
        acc = dot(a, b, acc)
    if weight_ptr is not None:
        acc *= tl.load(weight_ptr + offs_m, mask=mask_m, other=0.0)[:, None]
    columns = tl.load(columns_ptr + offs_m, mask=mask_m, other=0)
    to, mask = out_ptr + columns[:, None] * stride_ov + offs_n[None, :], mask_m[:, None] & mask_n
    tl.store(to, tl.load(to, mask=mask, other=0.0) + acc, mask=mask)
