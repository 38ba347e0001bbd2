"""What multiplies: the library, or the kernel of csrc/cpu/product.cpp where that is faster.

EXPO_KERNELS_NATIVE_PRODUCTS says what bf16 inputs are multiplied as; others are multiplied in fp32, whatever it says:

    mixed   bf16 operands, fp32 sums and logits, by our kernel: the default where there are AVX-512's bf16 instructions
    fp32    fp32 operands, exactly: the default elsewhere
    bf16    by the library, whose products are rounded to bf16, the logits too, as plain PyTorch does
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from expo_kernels.kernels.native import csrc
from expo_kernels.kernels.plain.budget import Budget
from expo_kernels.kernels.plain.products import Library, RowBlock

VARIABLE = "EXPO_KERNELS_NATIVE_PRODUCTS"
NAMES = ("mixed", "fp32", "bf16")


class Own(Library):
    """Sums in fp32 of fp32 or bf16 operands. Their bits depend on nothing but their numbers: rows need no padding."""

    def __init__(self, operands: torch.dtype, sizes: Budget, inputs: torch.dtype) -> None:
        super().__init__(operands, sizes)
        self.results = torch.float32
        if inputs == operands:
            self.room, self.columns = sizes.tile_bytes, None
        else:  # the share of a tile is for what is packed and for a tile of w in another dtype
            self.room, self.columns = sizes.tile_bytes // 2, max(1, sizes.chunk_tile // 2)

    def row_blocks(self, h: Tensor) -> Iterator[RowBlock]:
        for i in range(0, h.shape[0], self.sizes.logit_rows):
            block = h[i : i + self.sizes.logit_rows].to(self.operands)
            yield RowBlock(slice(i, i + block.shape[0]), block, block.shape[0])

    def logits(self, h: Tensor, w: Tensor, z: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for v in range(0, w.shape[0], self.columns or w.shape[0]):
            columns = slice(v, v + (self.columns or w.shape[0]))
            csrc.ops().product(h, w[columns].to(self.operands).T, z[:, columns], False, self.room)
            yield columns, z[:, columns]

    def add(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        csrc.ops().product(a, b, out, True, self.room)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        out = a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32)
        csrc.ops().product(a, b, out, False, self.room)
        return out


def products_of(inputs: torch.dtype, sizes: Budget) -> Library:
    """inputs: any dtype but float64."""
    asked = os.environ.get(VARIABLE) or ("mixed" if csrc.multiplies_bf16() else "fp32")
    if asked not in NAMES:
        raise ValueError(f"{VARIABLE}: want {', '.join(NAMES[:-1])} or {NAMES[-1]}, got {asked!r}")
    if inputs == torch.bfloat16 and asked == "bf16":
        return Library(torch.bfloat16, sizes)
    if inputs == torch.bfloat16 and asked == "mixed":
        if not csrc.multiplies_bf16():
            raise NotImplementedError(f"{VARIABLE}=mixed: want a processor with AVX-512's bf16 instructions")
        return Own(torch.bfloat16, sizes, inputs)
    return Own(torch.float32, sizes, inputs) if csrc.library_lags() else Library(torch.float32, sizes)
