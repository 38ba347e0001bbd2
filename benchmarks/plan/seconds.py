"""The time of one step of one rank, part by part: operations and bytes over what a card attains. Predicted only."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.plan.cards import HOST, PCIE, Card
from benchmarks.plan.heads import HEADS, Head
from benchmarks.plan.job import Job
from benchmarks.plan.traced import Traced
from train.memory import Run, Shape

COMPUTE = (
    "body products", "attention", "body, other operations", "made again", "head products", "head, other operations",
    "reference",
)  # fmt: skip


class Step(NamedTuple):
    """Seconds."""

    parts: tuple[tuple[str, float], ...]

    @property
    def compute(self) -> float:
        return sum(seconds for name, seconds in self.parts if name in COMPUTE)

    @property
    def head(self) -> float:
        return sum(seconds for name, seconds in self.parts if name.startswith("head"))

    @property
    def hidden(self) -> float:
        """As much of the communication as possible goes on behind the computing."""
        parts = dict(self.parts)
        return max(self.compute, parts["communication"]) + parts["optimizer"]

    @property
    def serial(self) -> float:
        """Nothing overlaps."""
        return sum(seconds for _, seconds in self.parts)


def step(job: Job, head: str, card: Card) -> Step:
    """Without launches, latencies of collectives, the input, and waiting for the rank with the longest pairs.

    products    operations / the card's products; attention: the causal half / the card's flash attention
    others      bytes read and written by each operation as transformers has it, one by one / memory bandwidth
    made again  what backward computes with checkpointing and would not without
    """
    shape, run = job.shape, job.run
    plain, made = job.body(checkpointing=False), job.body()
    again = _again(made, plain, card)
    one = HEADS[head]
    return Step(
        (
            ("body products", (plain.products + plain.products_back) / card.flops),
            ("attention", (plain.attention + plain.attention_back) / card.attention_flops),
            ("body, other operations", (plain.moved + plain.moved_back) / card.bandwidth),
            ("made again", again),
            ("head products", one.operations(shape, run) / card.flops),
            ("head, other operations", one.moved_bytes(shape, run) / card.bandwidth),
            ("reference", _reference(one, shape, run, plain, card) if job.reference_engine else 0.0),
            ("communication", _communication(shape, run, card)),
            ("optimizer", _optimizer(shape, run, card)),
        )
    )


def _again(made: Traced, plain: Traced, card: Card) -> float:
    return (
        (made.products_back - plain.products_back) / card.flops
        + (made.attention_back - plain.attention_back) / card.attention_flops
        + (made.moved_back - plain.moved_back) / card.bandwidth
    )


def _reference(head: Head, shape: Shape, run: Run, plain: Traced, card: Card) -> float:
    """A forward of the body and one product of the head."""
    body = plain.products / card.flops + plain.attention / card.attention_flops + plain.moved / card.bandwidth
    return body + 2.0 * head.rows(run) * shape.head_parameters / card.flops


def _communication(shape: Shape, run: Run, card: Card) -> float:
    """ZeRO-3: weights are gathered for forward and again for backward, e P (R - 1) / R received each time, and the
    gradients of what is trained scattered, as many for each; the reference's weights once. Stages 1 and 2: gradients
    scattered, weights gathered; stage 0: an all-reduce, twice the gradients. Offloaded weights come over PCIe, a
    rank's own share each time."""
    away, e = (run.ranks - 1) / run.ranks, run.size
    weights, gradients = e * shape.parameters, e * shape.trained
    gathers = {3: 2 + run.reference_engine, 0: 0}.get(run.stage, 1) * weights
    scatters = (1 if run.stage else 2) * gradients
    seconds = (gathers + scatters) * away / card.link(run.ranks) if run.ranks > 1 else 0.0
    if run.offload_param:
        seconds += gathers / run.ranks / (1e9 * card.pcie * PCIE)
    return seconds


def _optimizer(shape: Shape, run: Run, card: Card) -> float:
    """Adam on a rank's share: gradient read, e; master and two moments read and written, 6 x 4; weight written, e.
    Offloaded: on the host, with gradients down and weights up over PCIe."""
    own = shape.trained / (run.ranks if run.stage else 1)
    e = run.size
    if not run.offload_optimizer:
        return own * (2 * e + 24) / card.bandwidth
    return own * (2 * e + 24) / (1e9 * card.host * HOST) + own * 2 * e / (1e9 * card.pcie * PCIE)
