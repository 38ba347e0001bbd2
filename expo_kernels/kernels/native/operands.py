"""What the products multiply: fp32, or bf16 where that is asked for.

On a processor that multiplies bf16 (AVX-512-BF16, AMX) the library's bf16 product takes half the time of its fp32 one,
and rounds the logits to bf16 as plain PyTorch does: EXPO_KERNELS_NATIVE_PRODUCTS=bf16 takes it, for bf16 inputs. fp32,
the default, multiplies bf16 exactly.
"""

from __future__ import annotations

import os

import torch

VARIABLE = "EXPO_KERNELS_NATIVE_PRODUCTS"
NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def operands_of(dtype: torch.dtype) -> torch.dtype:
    """dtype: of the inputs, but float64."""
    asked = os.environ.get(VARIABLE, "fp32")
    if asked not in NAMES:
        raise ValueError(f"{VARIABLE}: want {' or '.join(NAMES)}, got {asked!r}")
    return NAMES[asked] if dtype == torch.bfloat16 else torch.float32
