"""product.py's tiles by tensor descriptors on a persistent grid, for Hopper and newer: the same sums in the same order.

One program a multiprocessor walks the tiles, row blocks fastest; descriptors move whole tiles asynchronously, and zeros
stand in for what lies past the end. An operand may lie either way, rows or columns contiguous: E' is read as it stands
for dh, and its transpose for dw.

a [M, K] and b [K, N], 16 bits each; out [M, N] fp32 with contiguous rows.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from expo_kernels.kernels.triton.descriptors import aligned, multiprocessors
from expo_kernels.kernels.triton.device import dot, slices_of, tile_at
from expo_kernels.kernels.triton.tuning.types import Tiles


def takes_descriptors(a: Tensor, b: Tensor) -> bool:
    """A function of how the operands lie in memory; an empty one has no descriptor."""
    return all(
        x.element_size() == 2 and x.numel() > 0 and 1 in x.stride() and aligned(x if x.stride(1) == 1 else x.T)
        for x in (a, b)
    )


def product_persistent(a: Tensor, b: Tensor, out: Tensor, tiles: Tiles, *, add: bool) -> None:
    (M, K), N = a.shape, b.shape[1]
    assert out.stride(1) == 1, "rows are contiguous"
    count = triton.cdiv(M, tiles.rows) * triton.cdiv(N, tiles.columns)
    a_turned, b_turned = a.stride(1) != 1, b.stride(1) != 1
    _product_persistent[(min(multiprocessors(a.device), count),)](
        _descriptor(a, tiles.rows, tiles.depth, a_turned), _descriptor(b, tiles.depth, tiles.columns, b_turned), out,
        M, N, K, out.stride(0),
        ADD=add, A_TURNED=a_turned, B_TURNED=b_turned, GROUP=tiles.group,
        BM=tiles.rows, BN=tiles.columns, BK=tiles.depth, SLICES=tiles.slices,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def _descriptor(x: Tensor, rows: int, columns: int, turned: bool) -> TensorDescriptor:
    """Of tiles [rows, columns] of x, or, where its columns are contiguous, of their transposes."""
    return TensorDescriptor.from_tensor(*((x.T, [columns, rows]) if turned else (x, [rows, columns])))


@triton.jit(do_not_specialize=["M", "K"])
def _product_persistent(
    a_desc, b_desc, out_ptr,                      # [M, K] or [K, M], [K, N] or [N, K]; out [M, N]
    M, N, K, stride_om,
    ADD: tl.constexpr, A_TURNED: tl.constexpr, B_TURNED: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    row_blocks, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in range(tl.program_id(0), row_blocks * columns, tl.num_programs(0)):
        i, j = tile_at(tile, row_blocks, columns, GROUP)
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(0, K, BK):
            a = a_desc.load([k, i * BM]).T if A_TURNED else a_desc.load([i * BM, k])
            b = b_desc.load([j * BN, k]).T if B_TURNED else b_desc.load([k, j * BN])
            acc = dot(a, b, acc)
        offs_m = i.to(tl.int64) * BM + tl.arange(0, BM)
        mask_m = (offs_m < M)[:, None]
        WIDTH: tl.constexpr = BN // SLICES
        parts = slices_of(acc, SLICES)
        # a slice of columns at a time, so that what is added to never stands in registers as a whole
        for s in tl.static_range(SLICES):
            offs_n = j.to(tl.int64) * BN + s * WIDTH + tl.arange(0, WIDTH)
            at, mask = out_ptr + offs_m[:, None] * stride_om + offs_n[None, :], mask_m & (offs_n < N)[None, :]
            part = parts[s]
            if ADD:
                part += tl.load(at, mask=mask, other=0.0)
            tl.store(at, part, mask=mask)
