"""Row scales around the two products of the gradient, each in one pass.

    before   scaled h = crowd h, rounded to the operands' dtype: the one rounding of c (or of c / S) on the way to dw
    after    dh = crowd (E' w) + label w_y, in the accumulator's dtype

crowd = -scale c inverse and label = scale c pull are numbers a row. k rows out of n (`rows`, or all), D hidden.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, DEPTH = 16, 256


def scaled_rows(h: Tensor, crowd: Tensor, rows: Tensor | None) -> Tensor:
    """h [n, D], crowd [n] -> crowd h at `rows`, [k, D] in the dtype of h."""
    n, D = h.shape
    out = h.new_empty(n if rows is None else rows.shape[0], D)
    if out.numel():
        _scaled_rows[_grid(out)](
            h, crowd, rows, out, out.shape[0], D, h.stride(0), BN=ROWS, BD=DEPTH, num_warps=4
        )  # fmt: skip
    return out


def fp16_lift(h: Tensor, crowd: Tensor) -> Tensor:
    """The power of two that brings the largest entry of crowd h to between 2^13 and 2^14, a scalar on the device: fp16
    ends at 6e-8, where a mean over a step's tokens puts most coefficients."""
    largest = h.abs().amax().to(crowd.dtype) * crowd.abs().amax() if h.numel() else crowd.new_zeros(())
    exponent = torch.floor(13.0 - torch.log2(largest)).clamp(-120.0, 120.0)
    return torch.where(largest > 0, torch.exp2(exponent), torch.ones_like(largest))


def finish_dh(dh: Tensor, crowd: Tensor, label: Tensor, y: Tensor, w: Tensor, rows: Tensor | None) -> None:
    """dh [k, D] = E' w on entry, in place; crowd, label, y [n]."""
    if dh.numel():
        _finish_dh[_grid(dh)](
            dh, crowd, label, y, w, rows, *dh.shape, w.shape[0], w.stride(0), BN=ROWS, BD=DEPTH, num_warps=4
        )


def _grid(out: Tensor) -> tuple[int, int]:
    return triton.cdiv(out.shape[0], ROWS), triton.cdiv(out.shape[1], DEPTH)


@triton.jit(do_not_specialize=["K"])
def _scaled_rows(
    h_ptr, crowd_ptr, rows_ptr, out_ptr,                      # in  [n, D], [n], [k]; out [k, D]
    K, D, stride_hn, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    offs_k, offs_n, offs_d, mask_k, mask = _places(rows_ptr, K, D, BN, BD)
    crowd = tl.load(crowd_ptr + offs_n, mask=mask_k, other=0.0)
    h = tl.load(h_ptr + offs_n[:, None] * stride_hn + offs_d[None, :], mask=mask, other=0.0)
    scaled = (h.to(crowd.dtype) * crowd[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + offs_k[:, None] * D + offs_d[None, :], scaled, mask=mask)


@triton.jit(do_not_specialize=["K"])
def _finish_dh(
    dh_ptr, crowd_ptr, label_ptr, y_ptr, w_ptr, rows_ptr,     # in and out [k, D]; in [n], [n], [n], [V, D], [k]
    K, D, V, stride_wv, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    offs_k, offs_n, offs_d, mask_k, mask = _places(rows_ptr, K, D, BN, BD)
    y = tl.load(y_ptr + offs_n, mask=mask_k, other=-1)
    crowd = tl.load(crowd_ptr + offs_n, mask=mask_k, other=0.0)
    label = tl.load(label_ptr + offs_n, mask=mask_k, other=0.0)
    # a label that is none has label = NaN, and so has its dh
    valid = (y >= 0) & (y < V)
    w = tl.load(w_ptr + y[:, None] * stride_wv + offs_d[None, :], mask=mask & valid[:, None], other=0.0)
    at = dh_ptr + offs_k[:, None] * D + offs_d[None, :]
    dh = tl.load(at, mask=mask, other=0.0)
    tl.store(at, dh * crowd[:, None] + w.to(dh.dtype) * label[:, None], mask=mask)


@triton.jit
def _places(rows_ptr, K, D, BN: tl.constexpr, BD: tl.constexpr):
    """This program's rows of the output, the rows of the input they come from, its columns, and their masks."""
    offs_k = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    offs_d = tl.program_id(1) * BD + tl.arange(0, BD)
    mask_k = offs_k < K
    offs_n = offs_k
    if rows_ptr is not None:
        offs_n = tl.load(rows_ptr + offs_k, mask=mask_k, other=0)
    return offs_k, offs_n, offs_d, mask_k, mask_k[:, None] & (offs_d < D)[None, :]
