"""The backends as the tests name them: a backend, or one of the Triton backend's routes in the interpreter.

plain               torch
native              the C++ kernels, where they were built (tests/test_native.py fails where they should have been)
native-bf16         the same with the library's bf16 products, of bf16 inputs
native-fp32         the same with fp32 products, of bf16 inputs: native's choice where there are no bf16 instructions
triton              the library's route: a product, then the row kernel
triton-fused        the product with the exponential epilogue
triton-persistent   the same by tensor descriptors on a persistent grid
"""

from __future__ import annotations

import torch

from expo_kernels.kernels.native import csrc, products
from expo_kernels.kernels.triton import tuning
from expo_kernels.kernels.triton.tuning import Tiles

ROUTES = {
    "triton": {},
    "triton-fused": {"fused": True},
    "triton-persistent": {"fused": True, "persistent": Tiles(32, 128, 32, 4, 1, 2, slices=4)},
}
PRODUCTS = {"native-bf16": "bf16", "native-fp32": "fp32"}
BACKENDS = ["plain", *([] if csrc.problem() else ["native", *PRODUCTS]), "triton", "triton-fused"]
DIRECT = ("plain", "native")
FUSED = (torch.bfloat16, torch.float32)  # other dtypes take the library's route whatever the card says


def use(name: str, monkeypatch) -> str:
    """Sets the route up for one test; -> what Execution(backend=) wants."""
    if name in DIRECT:
        return name
    if name in PRODUCTS:
        monkeypatch.setenv(products.VARIABLE, PRODUCTS[name])
        return "native"
    monkeypatch.setattr(tuning, "INTERPRETER", tuning.INTERPRETER._replace(**ROUTES[name]))
    return "triton"


def applies(name: str, dtype: torch.dtype) -> bool:
    if name in PRODUCTS:
        return dtype == torch.bfloat16
    return name in (*DIRECT, "triton") or dtype in FUSED
