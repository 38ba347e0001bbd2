"""Whether a candidate is right, on the device, before it is timed: against float64, and its bits.

The inner dimension and what a stride is a multiple of are those of the timed sizes, so that the program that is checked
is the program that is timed; the number of rows and the vocabulary end in the middle of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import head_case
from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton import product
from expo_kernels.kernels.triton.head.merge import RowResults
from expo_kernels.kernels.triton.tuning.types import Card
from tools.tuning.subjects import PRODUCTS, Inputs, Size, new_e, score, size_of

ROWS, COLUMNS = 300, 2064
ODD = Size(200, 130, 1003)  # rows do not begin at whole vectors
ALONE = (1, 7, 40)  # rows whose bits must not depend on the others
LOGP, ENTRIES = (1e-4, 1e-4), (2e-2, 1e-6)  # relative, absolute; entries are rounded to the operands' dtype
PRODUCT = {2: 2e-5, 4: 2e-6, 8: 1e-12}  # relative in norm, by the operands' bytes; tensor cores truncate their sums


class Checked(NamedTuple):
    """What a kernel's candidates are all checked on."""

    size: Size
    device: torch.device
    scored: dict[str, Inputs]  # by the kind of logits


def checked(kernel: str, device: torch.device) -> Checked:
    size = size_of(kernel, device)
    if device.type != "cpu":
        size = size._replace(n=ROWS, V=COLUMNS)
    if kernel in PRODUCTS:
        return Checked(size, device, {})
    sizes = {"": size, "odd sizes, ": ODD} if kernel == "small" and device.type != "cpu" else {"": size}
    # peaked: with rows that are done again
    kinds = [(f"{name}{kind}", one, kind) for name, one in sizes.items() for kind in ("trained", "peaked")]
    return Checked(size, device, {name: _inputs(one, kind, device) for name, one, kind in kinds})


def wrong(kernel: str, row: Card, on: Checked) -> str:
    """-> what is wrong with the row's kernel, or nothing."""
    for kind, made in on.scored.items():
        if found := _wrong_scores(kernel, made, row):
            return f"{kind}: {found}"
    if kernel not in (*PRODUCTS, "small"):
        return ""
    tiled = row if kernel == "product_persistent" else row._replace(product_persistent=None)
    return _wrong_products(on.size, tiled, on.device)


def _inputs(size: Size, kind: str, device: torch.device) -> Inputs:
    h, w, y = (x.to(device) for x in head_case(size.n, size.D, size.V, kind=kind, dtype=size.dtype))
    return Inputs(h, y, Head(w, None, size.softcap, 1.0), new_e(h, size.V))


def _wrong_scores(kernel: str, made: Inputs, row: Card) -> str:
    h, y, head, e, n = made.h, made.y, made.head, made.e, made.h.shape[0]
    e.fill_(float("nan"))
    first = score(made, row, kernel, e)
    if found := _far_from_exact(first, made):
        return found
    kept = e.clone()
    again = score(made, row, kernel, e)
    if not (torch.equal(first.logp, again.logp) and torch.equal(first.inverse, again.inverse) and torch.equal(kept, e)):
        return "two runs differ"
    if not torch.equal(score(made, row, kernel, None).logp, first.logp):
        return "forward only has other bits"
    for count in (some for some in ALONE if some < n):
        for rows in (slice(0, count), slice(n - count, n)):
            part = Inputs(h[rows], y[rows], head, new_e(h[rows], head.w.shape[0]))
            if not torch.equal(score(part, row, kernel, part.e).logp, first.logp[rows]):
                return f"{count} rows alone have other bits"
    return ""


def _far_from_exact(found: RowResults, made: Inputs) -> str:
    h, y, head, e = made.h, made.y, made.head, made.e
    z = h.double() @ head.w.double().T
    z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
    logp = torch.log_softmax(z, -1)
    own = logp.gather(1, y[:, None])[:, 0]
    if not torch.allclose(found.logp.double(), own, *LOGP):
        return f"log-probs are off by {float((found.logp.double() - own).abs().max()):.1e}"
    slope = 1.0 if head.softcap is None else 1.0 - (z / head.softcap).square()
    entries = (logp.exp() * slope).scatter(1, y[:, None], 0.0)
    made_entries = e.double() * found.inverse.double()[:, None]
    if not torch.allclose(made_entries, entries, *ENTRIES):
        return f"probabilities are off by {float((made_entries - entries).abs().max()):.1e}"
    return ""


def _wrong_products(size: Size, row: Card, device: torch.device) -> str:
    random = torch.Generator(device).manual_seed(1)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=random, device=device).to(size.dtype)

    h, w, e = matrix(size.n, size.D), matrix(size.V, size.D), matrix(size.n, size.V)
    for name, a, b, add in (("logits", h, w.T, False), ("dh", e, w, False), ("dw", e.T, h, True)):
        out = torch.ones(a.shape[0], b.shape[1], device=device)
        exact, made = a.double() @ b.double() + add, []
        for _ in range(2):
            made.append(out.clone())
            product.own_product(a, b, made[-1], row, add=add)
        error = float((made[0].double() - exact).norm() / exact.norm())
        if not error <= PRODUCT[size.dtype.itemsize]:
            return f"{name} is off by {error:.1e}"
        if not torch.equal(*made):
            return f"{name}: two runs differ"
    return ""
