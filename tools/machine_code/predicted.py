"""What a head should take on a card, measured by nobody: products, bytes and launches, from one stated model.

    products    operations / (peak x the share that large products reach), or their bytes / bandwidth if that is more
    the rest    bytes of the kernels around them / bandwidth (benchmarks/plan/cards.py has all four, with sources)
    launches    GAP each

of the library's route, which every card takes until a measurement says otherwise. The library's own products, which it
is compared with, take the same operations at the same rate and nothing else. N tokens, D hidden, V vocabulary, in bf16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from benchmarks.plan.cards import CARDS, Card
from expo_kernels.kernels.triton.budget import budget
from tools.marked import table

D, V, WORKSPACE = 4096, 128256, 1 << 30
SIZES = (32768, 4096)
PAIR = 2048  # scored tokens of a pair; a chunk takes whole pairs
LONG = 8192  # of one that no chunk holds: what does not fit is scored again
SHOWN = ("h200", "h100", "a100-80g")
GAP = 3e-6  # seconds from one small kernel to the next: an assumption
# counted by tests/test_launches.py: of a block of logits forward only, the E' beside it, of a chunk, of a step
A_BLOCK, ENTRIES, A_CHUNK, A_STEP = 3, 1, 20, 60


class Mode(NamedTuple):
    name: str
    products: int
    dw: bool
    given: bool = False  # the caller's fp32 buffer takes dw
    pair: int = PAIR

    @property
    def entries(self) -> bool:
        """E' is made."""
        return self.products > 1


MODES = (
    Mode("exact", 3, dw=True), Mode("exact, dw in the caller's buffer", 3, dw=True, given=True),
    Mode(f"exact, pairs of {LONG:,} tokens", 3, dw=True, pair=LONG),
    Mode("frozen head", 2, dw=False), Mode("forward only", 1, dw=False),
)  # fmt: skip
WANTED = {  # of the library's products, on an H200
    ("exact", 32768): 0.90, ("frozen head", 32768): 0.88, ("forward only", 32768): 0.90, ("exact", 4096): 0.80,
}  # fmt: skip


class Time(NamedTuple):
    """Seconds."""

    library: float  # its products alone
    products: float  # ours
    rest: float
    launches: float

    @property
    def total(self) -> float:
        return self.products + self.rest + self.launches

    @property
    def share(self) -> float:
        return self.library / self.total


class Plan(NamedTuple):
    """How N tokens are cut: chunks of n rows, blocks of logits of so many rows, the last one of a chunk padded."""

    chunks: int
    n: float
    blocks: int
    block_rows: int
    again: int  # tokens scored a first time only to be scored again


def plan(mode: Mode, N: int) -> Plan:
    sizes = budget(D, V, torch.bfloat16, WORKSPACE)
    R, rows, pairs = sizes.chunk_rows, sizes.logit_rows, -(-N // mode.pair)
    if not mode.entries:
        return Plan(-(-N // R), N / -(-N // R), -(-N // rows), rows, 0)
    if mode.pair <= R:
        chunks = -(-pairs // (R // mode.pair))
        n = N / chunks
        return Plan(chunks, n, chunks * -(-int(n) // rows), rows, 0)
    parts = -(-mode.pair // R)  # the last of them is in the workspace when the coefficients are known
    again = pairs * (mode.pair - mode.pair // parts)
    blocks = pairs * parts * -(-mode.pair // parts // rows)
    return Plan(pairs * parts, mode.pair / parts, blocks + -(-again // rows), rows, again)


def predict(mode: Mode, N: int, card: Card) -> Time:
    cut, G = plan(mode, N), 2.0 * N * D * V / card.flops
    return Time(
        library=mode.products * G,
        products=sum(_product(*one, card) for one in _products(mode, cut)),
        rest=sum(size for _, size in moved(mode, N)) / card.bandwidth,
        launches=GAP * (cut.blocks * (A_BLOCK + ENTRIES * mode.entries) + A_STEP + cut.chunks * A_CHUNK * mode.entries),
    )


def _products(mode: Mode, cut: Plan) -> list[tuple[float, float]]:
    """Operations and bytes of each: logits by blocks, into fp32; dh by chunks; dw by chunks, added to in fp32."""
    made = [(2.0 * cut.block_rows * D * V, 2.0 * V * D + cut.block_rows * (2 * D + 4 * V))] * cut.blocks
    if mode.products > 1:
        made += [(2.0 * cut.n * D * V, 2 * cut.n * V + 2.0 * V * D + 4 * cut.n * D)] * cut.chunks
    if mode.dw:
        made += [(2.0 * cut.n * D * V, 2 * cut.n * V + 2 * cut.n * D + 8.0 * V * D)] * cut.chunks
    return made


def _product(operations: float, size: float, card: Card) -> float:
    return max(operations / card.flops, size / card.bandwidth)


def moved(mode: Mode, N: int) -> list[tuple[str, float]]:
    """Bytes beside the products."""
    scored = N + plan(mode, N).again
    made = [("row_sums: logits read once", 4.0 * scored * V), ("h gathered", 4.0 * scored * D)]
    if mode.entries:
        made += [
            ("row_sums: E' written", 2.0 * N * V),
            ("dh: finished, put in its place, handed out", 10.0 * N * D + 6.0 * N * D + 6.0 * N * D),
        ]
    if mode.dw:
        made.append(("h scaled, labels' entries of dw", 4.0 * N * D + 10.0 * N * D))
    if mode.dw and not mode.given:
        made.append(("dw: zeros, then cast and handed out", 4.0 * V * D + 6.0 * V * D))
    return made


HEADINGS = (
    "card", "scored tokens", "mode", "library's products, ms", "ours, ms", "beside them, ms", "launches, ms",
    "in all, ms", "of the library's", "wanted",
)  # fmt: skip


def text() -> str:
    rows = [_row(name, N, mode) for name in SHOWN for N in SIZES for mode in MODES if mode.pair <= N]
    cut = plan(MODES[0], SIZES[0])
    peaks = ", ".join(f"{name} {CARDS[name].flops / 1e12:.0f} TF/s and {CARDS[name].bandwidth / 1e12:.2f} TB/s"
                      for name in SHOWN)  # fmt: skip
    return (
        f"**Predicted, not measured.** D {D:,}, V {V:,}, bf16, workspace {WORKSPACE >> 20} MiB, pairs of {PAIR:,} "
        f"scored tokens unless said otherwise: at {SIZES[0]:,} tokens {cut.chunks} chunks and {cut.blocks} blocks of "
        f"{cut.block_rows} rows of logits. Attained, by assumption: {peaks}; {1e6 * GAP:.0f} us a launch. Nothing "
        f"overlaps but a product and its own bytes.\n\n{table(HEADINGS, rows)}\n\nThe fused product pays from this "
        f"share of the library's rate on, exact at {SIZES[0]:,} tokens: "
        + ", ".join(f"{name} {100 * pays(MODES[0], SIZES[0], CARDS[name]):.0f} %" for name in SHOWN)
        + "."
    )


def pays(mode: Mode, N: int, card: Card) -> float:
    """The share of the library's rate from which on the fused product is the faster one: it makes E' and the sums
    itself, so the row kernels' bytes and launches fall away."""
    cut = plan(mode, N)
    product = sum(_product(*one, card) for one in _products(mode, cut)[: cut.blocks])
    rows = (4.0 + 2.0 * mode.entries) * (N + cut.again) * V / card.bandwidth
    return 2.0 * N * D * V / card.flops / (product + rows + GAP * cut.blocks * (A_BLOCK + ENTRIES * mode.entries))


def _row(name: str, N: int, mode: Mode) -> tuple[str, ...]:
    t = predict(mode, N, CARDS[name])
    wanted = WANTED.get((mode.name, N)) if name == "h200" else None
    cells = (f"{1e3 * part:.1f}" for part in (t.library, t.products, t.rest, t.launches, t.total))
    return (
        name, f"{N:,}", mode.name, *cells, f"{100 * t.share:.0f} %", f"{100 * wanted:.0f} %" if wanted else "-",
    )  # fmt: skip
