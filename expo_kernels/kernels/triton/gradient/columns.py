"""db: the sum of a chunk's E' over its rows, each times its coefficient. One pass over E', rows in order.

n rows, V vocabulary.
"""

import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 128


def add_columns(db: Tensor, e: Tensor, crowd: Tensor) -> None:
    """db [V] += crowd E';  e [n, V] with contiguous rows, crowd [n]."""
    n, V = e.shape
    _add_columns[(triton.cdiv(V, COLUMNS),)](e, crowd, db, n, V, e.stride(0), BN=ROWS, BV=COLUMNS, num_warps=4)


@triton.jit(do_not_specialize=["n"])
def _add_columns(e_ptr, crowd_ptr, db_ptr, n, V, stride_en, BN: tl.constexpr, BV: tl.constexpr):
    offs_v = tl.program_id(0) * BV + tl.arange(0, BV)
    mask_v = offs_v < V
    acc = tl.zeros([BN, BV], db_ptr.dtype.element_ty)
    for first in range(0, n, BN):
        offs_n = first + tl.arange(0, BN).to(tl.int64)
        mask_n = offs_n < n
        crowd = tl.load(crowd_ptr + offs_n, mask=mask_n, other=0.0)
        at = e_ptr + offs_n[:, None] * stride_en + offs_v[None, :]
        e = tl.load(at, mask=mask_n[:, None] & mask_v[None, :], other=0.0)
        acc += crowd[:, None] * e.to(acc.dtype)
    at_b = db_ptr + offs_v
    tl.store(at_b, tl.load(at_b, mask=mask_v, other=0.0) + tl.sum(acc, 0), mask=mask_v)
