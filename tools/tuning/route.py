"""Which route a card's heads take: the library's product and the row kernel, or ours with the exponential epilogue. And
whose products a step is made of."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from benchmarks import measure
from expo_kernels.kernels.triton import product
from expo_kernels.kernels.triton.head import scoring
from expo_kernels.kernels.triton.tuning.types import Card
from tools.tuning import checks, subjects
from tools.tuning.subjects import GEMMA, LLAMA, QWEN, TINY, Step, workspace

MARGIN = 0.02  # by which the route of the table must be beaten
HEADS = {"llama": LLAMA, "qwen": QWEN, "gemma, soft cap": GEMMA}
ROUNDS = 7
PARTS = ("logits", "dh", "dw")  # of a step


class Route(NamedTuple):
    card: Card  # the row, with the route that is taken
    seconds: dict[tuple[str, str], float]  # of head and route: E' and forward only, or all three products, once each
    refused: dict[str, str]  # routes that are wrong, and why

    def ratio(self, name: str, base: str) -> float:
        """The geometric mean over the heads."""
        pairs = [(self.seconds[head, name], self.seconds[head, base]) for head in HEADS]
        return math.exp(sum(math.log(one / other) for one, other in pairs) / len(pairs))


def routes(card: Card) -> dict[str, Card]:
    found = {"library": card._replace(fused=False), "fused": card._replace(fused=True, persistent=None)}
    return found if card.persistent is None else found | {"descriptors": card._replace(fused=True)}


def choose(card: Card, device: torch.device, *, warmup: float, rounds: int = ROUNDS) -> Route:
    every = routes(card)
    kernels = {"library": "walk", "fused": "head", "descriptors": "persistent"}
    refused = {}
    for name, row in every.items():
        if why := checks.wrong(kernels[name], row, checks.checked(kernels[name], device)):
            refused[name] = why
    left = {name: row for name, row in every.items() if name not in refused}
    if not left:
        raise RuntimeError(f"no route is right: {refused}")
    seconds: dict[tuple[str, str], float] = {}
    for head, size in HEADS.items():
        tiny = TINY["capped" if size.softcap else "head"]
        made = subjects.inputs(tiny if device.type == "cpu" else size, "head", device)
        steps = {f"{name}, {kind}": step for name, row in left.items() for kind, step in _steps(made, row).items()}
        times = measure.interleaved(steps, rounds=rounds, warmup=warmup)
        for name in left:
            seconds[head, name] = times[f"{name}, E'"].median + times[f"{name}, forward only"].median
        del made, steps  # the next head's weight is as large
    now = "library" if not card.fused else "descriptors" if card.persistent is not None else "fused"
    found = Route(card, seconds, refused)
    base = now if now in left else next(iter(left))
    best = min(left, key=lambda name: found.ratio(name, base))
    if best != base and found.ratio(best, base) > 1 - MARGIN:
        best = base
    return found._replace(card=_row(card, best))


def choose_products(card: Card, device: torch.device, *, warmup: float, rounds: int = ROUNDS) -> Route:
    """Of 16-bit operands: the library's product unless ours is right and clearly faster."""
    kernel = "product" if card.product_persistent is None else "product_persistent"
    size = subjects.size_of(kernel, device)
    probe = torch.empty(1, 1, dtype=size.dtype, device=device)
    has_it = product.library_has_it(probe, probe.float(), add=True)
    refused = {} if has_it else {"library": "the library has none here"}
    if why := checks.wrong(kernel, card, checks.checked(kernel, device)):
        refused["ours"] = why
    seconds: dict[tuple[str, str], float] = {}
    for head, one in HEADS.items():
        made = subjects.inputs(one if device.type != "cpu" else size, kernel, device)
        every = {"library": _library_products(made), "ours": subjects.products(made, card)}
        steps = {f"{name}, {kind}": every[name][kind] for name in every if name not in refused for kind in PARTS}
        times = measure.interleaved(steps, rounds=rounds, warmup=warmup)
        for name in (name for name in every if name not in refused):
            seconds[head, name] = sum(times[f"{name}, {kind}"].median for kind in PARTS)
        del made, steps, every
    found = Route(card, seconds, refused)
    ours = not refused and found.ratio("ours", "library") <= 1 - MARGIN
    return found._replace(card=card._replace(own_products=ours))


def _library_products(made: subjects.Inputs) -> dict[str, Step]:
    (h, _, head, e, (z, dh, dw)) = made
    return {
        "logits": lambda: product.library_product(h, head.w.T, z, add=False),
        "dh": lambda: product.library_product(e, head.w, dh, add=False),
        "dw": lambda: product.library_product(e.T, h, dw, add=True),
    }


def _row(card: Card, name: str) -> Card:
    """The library's route keeps the tile for descriptors: it is measured, only not taken."""
    return card._replace(fused=False) if name == "library" else routes(card)[name]


def _steps(made: subjects.Inputs, row: Card) -> dict[str, Step]:
    run = scoring._fused if row.fused else None

    def scored(e: torch.Tensor | None) -> Step:
        if run is not None:
            return lambda: run(made.h, made.y, made.head, e, False, row)
        return lambda: scoring._library(made.h, made.y, made.head, e, workspace(made.h), False, row)

    return {"E'": scored(made.e), "forward only": scored(None)}


def lines(route: Route, names: list[str]) -> list[str]:
    shown = [f"{'route, ms':<20}" + "".join(f"{name:>14}" for name in names)]
    for head in HEADS:
        cells = (route.seconds.get((head, name)) for name in names)
        shown.append(f"{head:<20}" + "".join(f"{'-' if s is None else f'{1e3 * s:.3f}':>14}" for s in cells))
    return shown + [f"{name}: {why}" for name, why in route.refused.items()]
