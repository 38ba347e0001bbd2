"""What is run of each kernel: the launchers themselves, on a row of the table that holds the candidate.

n rows, D hidden, V vocabulary. On a card the sizes are those that tools/machine_code compiles, so that nothing is
compiled twice; in the interpreter they are tiny.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton import product
from expo_kernels.kernels.triton.budget import padded
from expo_kernels.kernels.triton.head import merge, rows, scoring
from expo_kernels.kernels.triton.head.merge import RowResults
from expo_kernels.kernels.triton.tuning.types import Card

WORKSPACE, LITTLE = 1 << 30, 1 << 17  # bytes; in the interpreter blocks of few rows


class Size(NamedTuple):
    n: int
    D: int
    V: int
    dtype: torch.dtype = torch.bfloat16
    softcap: float | None = None


LLAMA, GEMMA = Size(4096, 4096, 128256), Size(4096, 2304, 256000, softcap=30.0)
QWEN = Size(4096, 3584, 152064)
FP32 = Size(4096, 1024, 32000, torch.float32)
SIZES = {
    "head": LLAMA, "capped": GEMMA, "persistent": LLAMA, "product": LLAMA, "product_persistent": LLAMA, "small": FP32,
    "walk": LLAMA._replace(n=512),
}  # fmt: skip
PRODUCTS = ("product", "product_persistent")
TINY = {kernel: size._replace(n=12, D=32, V=144) for kernel, size in SIZES.items()}


class Inputs(NamedTuple):
    h: Tensor  # [n, D]
    y: Tensor  # [n]
    head: Head
    e: Tensor  # [n, V], rows as the workspace has them
    scratch: tuple[Tensor, ...] = ()  # what the kernel reads or writes beside


Step = Callable[[], object]


def size_of(kernel: str, device: torch.device) -> Size:
    return (TINY if device.type == "cpu" else SIZES)[kernel]


def inputs(size: Size, kernel: str, device: torch.device) -> Inputs:
    """Random ones: what a tile costs does not depend on the logits, as long as no label is so improbable that its row
    is done again, and the label's logit here is within 12 of the others."""
    random = torch.Generator(device).manual_seed(0)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=random, device=device)

    n, D, V = size.n, size.D, size.V
    h, w = normal(n, D).to(size.dtype), (normal(V, D) / D**0.5).to(size.dtype)
    y = torch.randint(0, V, (n,), generator=random, device=device)
    made = Inputs(h, y, Head(w, None, size.softcap, 1.0), new_e(h, V))
    if kernel == "walk":
        return made._replace(scratch=(normal(n, padded(V))[:, :V],))
    if kernel in (*PRODUCTS, "small"):
        made.e.copy_(normal(n, V))
        return made._replace(scratch=tuple(torch.zeros(shape, device=device) for shape in ((n, V), (n, D), (V, D))))
    return made


def new_e(h: Tensor, V: int) -> Tensor:
    return h.new_empty(h.shape[0], padded(V))[:, :V]


def workspace(h: Tensor) -> int:
    return LITTLE if h.device.type == "cpu" else WORKSPACE


def score(made: Inputs, row: Card, kernel: str, e: Tensor | None, *, stats: bool = False) -> RowResults:
    """The head's own way through the kernel: h, y -> log-probs, and E' where given."""
    if kernel == "walk":
        return scoring._library(made.h, made.y, made.head, e, workspace(made.h), stats, row)
    if kernel != "persistent":
        row = row._replace(persistent=None)
    return scoring._fused(made.h, made.y, made.head, e, stats, row)


def steps(kernel: str, made: Inputs, row: Card) -> dict[str, Step]:
    """What is timed, by its name; a candidate is worth the sum: a step launches each once, its reference pass the
    forward only."""
    if kernel == "walk":
        return _walks(made, row)
    if kernel in PRODUCTS:
        return products(made, row if kernel == "product_persistent" else row._replace(product_persistent=None))
    scored: dict[str, Step] = {
        "E'": lambda: score(made, row, kernel, made.e),
        "forward only": lambda: score(made, row, kernel, None),
    }
    return scored if kernel != "small" else scored | products(made, row)


def _walks(made: Inputs, row: Card) -> dict[str, Step]:
    (logits,) = made.scratch
    out = merge.new_results(made.h, False)

    def walk(e: Tensor | None) -> Step:
        return lambda: rows.score_logits(logits, made.y, made.head, e, made.h, out, row)

    return {"E'": walk(made.e), "forward only": walk(None)}


def products(made: Inputs, row: Card) -> dict[str, Step]:
    """The three that a step is made of, as ours does them where the library does not."""
    (h, _, head, e, (z, dh, dw)) = made

    def own(a: Tensor, b: Tensor, out: Tensor, add: bool) -> Step:
        return lambda: product.own_product(a, b, out, row, add=add)

    return {"logits": own(h, head.w.T, z, False), "dh": own(e, head.w, dh, False), "dw": own(e.T, h, dw, True)}
