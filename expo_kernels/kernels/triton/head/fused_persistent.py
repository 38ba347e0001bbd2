"""fused.py's tiles by tensor descriptors on a persistent grid, for Hopper and newer: the same epilogue, the same sums.

One program a multiprocessor walks the tiles, row blocks fastest, so that the chunk's h stays in cache while w streams
past once; descriptors move whole tiles asynchronously, and zeros stand in for what lies past the end.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton.descriptors import aligned, multiprocessors
from expo_kernels.kernels.triton.device import dot, tile_at
from expo_kernels.kernels.triton.head.fused import Partials, epilogue, start
from expo_kernels.kernels.triton.tuning import Tiles


def takes_descriptors(h: Tensor, head: Head, e: Tensor | None) -> bool:
    """A function of the head and of how w lies in memory, never of the number of rows. A soft cap's epilogue wants more
    registers than this kernel has left."""
    return head.softcap is None and h.element_size() == 2 and all(aligned(x) for x in (h, head.w, e) if x is not None)


def head_tiles_persistent(
    h: Tensor, y: Tensor, head: Head, offset: Tensor, e: Tensor | None, out: Partials, tiles: Tiles
) -> None:
    """As head.head_tiles, without the redo."""
    (n, D), (V, _) = h.shape, head.w.shape
    row_blocks, J = triton.cdiv(n, tiles.rows), triton.cdiv(V, tiles.columns)
    programs = min(multiprocessors(h.device), row_blocks * J)
    block = [tiles.rows, tiles.columns // tiles.slices]
    _head_tiles_persistent[(programs,)](
        TensorDescriptor.from_tensor(h, [tiles.rows, tiles.depth]),
        TensorDescriptor.from_tensor(head.w, [tiles.columns, tiles.depth]),
        None if e is None else TensorDescriptor.from_tensor(e, block),
        head.bias, y, offset, *out, n, V, J,
        SCALE=head.scale, SOFTCAP=head.softcap, D=D, GROUP=tiles.group,
        BN=tiles.rows, BV=tiles.columns, BD=tiles.depth, SLICES=tiles.slices,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def _head_tiles_persistent(
    h_desc, w_desc, e_desc,                                           # [n, D], [V, D] in; [n, V] out
    bias_ptr, y_ptr, offset_ptr,                                      # in  [V], [n], [n]
    label_exp_ptr, rest_ptr, peak_ptr, moment_ptr,                    # out [n], then [n, J]
    n, V, J,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr,
    BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    row_blocks = tl.cdiv(n, BN)
    for tile in range(tl.program_id(0), row_blocks * J, tl.num_programs(0)):
        i, j = tile_at(tile, row_blocks, J, GROUP)
        acc = start(bias_ptr, j, V, SOFTCAP, tl.float32, BN, BV)
        for d in range(0, D, BD):
            h = h_desc.load([i * BN, d])
            w = w_desc.load([j * BV, d])
            acc = dot(h, w.T, acc)
        first = i.to(tl.int64) * BN
        epilogue(
            acc, first, tl.arange(0, BN) < n - first, j, y_ptr, offset_ptr, None, 0, e_desc, label_exp_ptr,
            rest_ptr, peak_ptr, moment_ptr, V, J, SCALE, SOFTCAP, BN, BV, SLICES,
        )  # fmt: skip
