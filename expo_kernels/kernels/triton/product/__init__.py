"""out (+)= a b with a wider out: the library's product where it has one, ours where it has none, or where the card's
table says that ours is faster.

The library has it on NVIDIA cards (torch's out_dtype), and in every dtype into itself. Ours walks the inner dimension
in one go, so nothing is split and the bits are the same on every run: by tensor descriptors on a persistent grid where
card and operands have them (persistent.py), else a tile a program.

a [M, K] and b [K, N] with any strides; out [M, N] with contiguous rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from expo_kernels.kernels.triton.device import dot, tile_at
from expo_kernels.kernels.triton.product.persistent import product_persistent, takes_descriptors
from expo_kernels.kernels.triton.tuning import Card, Tiles, card_for

NEWER_THAN_2_9 = tuple(int(part) for part in torch.__version__.split(".")[:2]) > (2, 9)


def product(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
    """out = a b, or out += a b."""
    if not a.shape[0] or not b.shape[1]:
        return
    card = card_for(a.device)
    if library_has_it(a, out, add=add) and not (card.own_products and a.element_size() == 2):
        library_product(a, b, out, add=add)
    else:
        own_product(a, b, out, card, add=add)


def library_has_it(a: Tensor, out: Tensor, *, add: bool) -> bool:
    """On a CPU, which only tests see, ours is taken throughout: it is what stands in for the library elsewhere."""
    if a.device.type == "cpu":
        return False
    if a.dtype == out.dtype:
        return True
    # torch 2.9 wants what it adds to in the operands' dtype
    return torch.version.hip is None and (not add or NEWER_THAN_2_9)


def library_product(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    elif add:
        torch.ops.aten.addmm.dtype_out(out, a, b, out.dtype, out=out)
    else:
        torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)


def own_product(a: Tensor, b: Tensor, out: Tensor, card: Card, *, add: bool) -> None:
    if card.product_persistent is not None and takes_descriptors(a, b):
        product_persistent(a, b, out, card.product_persistent, add=add)
    else:
        tiled_product(a, b, out, card.product_tiles(a, b), add=add)


def tiled_product(a: Tensor, b: Tensor, out: Tensor, tiles: Tiles, *, add: bool) -> None:
    (M, K), N = a.shape, b.shape[1]
    assert out.stride(1) == 1, "rows are contiguous"
    grid = (triton.cdiv(M, tiles.rows) * triton.cdiv(N, tiles.columns),)
    _product[grid](
        a, b, out, M, N, K, a.stride(0), a.stride(1), b.stride(0), b.stride(1), out.stride(0),
        ADD=add, WHOLE=K % tiles.depth == 0, GROUP=tiles.group, BM=tiles.rows, BN=tiles.columns, BK=tiles.depth,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


@triton.jit
def _product(
    a_ptr, b_ptr, out_ptr,                        # in  [M, K], [K, N]; out [M, N]
    M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_om,
    ADD: tl.constexpr, WHOLE: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i, j = tile_at(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    offs_m = i.to(tl.int64) * BM + tl.arange(0, BM)
    offs_n = j.to(tl.int64) * BN + tl.arange(0, BN)
    offs_k = tl.arange(0, BK).to(tl.int64)
    mask_m, mask_n = (offs_m < M)[:, None], (offs_n < N)[None, :]
    a_tile = a_ptr + offs_m[:, None] * stride_am + offs_k[None, :] * stride_ak
    b_tile = b_ptr + offs_n[None, :] * stride_bn + offs_k[:, None] * stride_bk
    acc = tl.zeros([BM, BN], out_ptr.dtype.element_ty)
    for k in range(0, K, BK):
        if WHOLE:
            a, b = tl.load(a_tile, mask=mask_m, other=0.0), tl.load(b_tile, mask=mask_n, other=0.0)
        else:
            mask_k = k + offs_k < K
            a = tl.load(a_tile, mask=mask_m & mask_k[None, :], other=0.0)
            b = tl.load(b_tile, mask=mask_n & mask_k[:, None], other=0.0)
        acc = dot(a, b, acc)
        a_tile += BK * stride_ak
        b_tile += BK * stride_bk
    at = out_ptr + offs_m[:, None] * stride_om + offs_n[None, :]
    mask = mask_m & mask_n
    if ADD:
        acc += tl.load(at, mask=mask, other=0.0)
    tl.store(at, acc, mask=mask)
