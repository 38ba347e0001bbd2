"""The four loss heads that are compared: products, positions, memory, bytes moved beside the products.

G one product of 2 N D V operations. M positions, prompt and padding included, N scored ones, R the positions of a pair;
D, V of the head, e bytes a number of its dtype (2 in bf16). Each formula stands at the function that uses it. A soft
cap of the logits, which costs the naive head two more copies of them, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from train.memory import Run, Shape, estimate

TILE_ROWS, TILE_COLUMNS = 4096, 32768  # of TRL's ChunkedLogProbFunction
Memory = Callable[[Shape, Run], int]


@dataclass(frozen=True, kw_only=True)
class Head:
    name: str
    products: int  # in G, of a trained head
    frozen: int  # in G, of a frozen one
    scored_only: bool  # False: prompt and padding are computed too
    memory: Memory  # bytes at its peak, what autograd keeps of the body not included
    moved: Callable[[int], int]  # e -> bytes read and written for a logit beside the products

    def rows(self, run: Run) -> int:
        """Positions that meet the vocabulary."""
        return run.scored if self.scored_only else run.positions

    def operations(self, shape: Shape, run: Run) -> float:
        G = 2.0 * self.rows(run) * shape.head_parameters
        return G * (self.products if shape.head_trained else self.frozen)

    def moved_bytes(self, shape: Shape, run: Run) -> float:
        return float(self.rows(run)) * shape.vocabulary * self.moved(run.size)


def _naive(shape: Shape, run: Run) -> int:
    """All logits, log_softmax in fp32, its gradient: 12 M V; train/memory.py, _head_naive."""
    return estimate(shape, run).head_naive


def _liger(shape: Shape, run: Run) -> int:
    """LigerFusedLinearPreferenceBase, one pair a chunk, compiled as by default: head + dh, e M D, + the larger of

        softmax     logits and their gradient, e R V each, one copy of them in fp32, 4 R V; dw so far, e V D
        products    the logits' gradient e R V, its dw and dw so far 2 e V D, its dh e R D

    without the terms of V D where the head is frozen. Not compiled it is 14 R V in place of 8 R V in bf16.
    """
    e, V, R = run.size, shape.vocabulary, 2 * run.length
    dw = shape.head_parameters * shape.head_trained
    softmax = (4 + 2 * e) * R * V + e * dw
    products = e * (R * V + 2 * dw + R * shape.head_width)
    return _gathered(shape, run) + e * run.positions * shape.head_width + max(softmax, products)


def _trl(shape: Shape, run: Run) -> int:
    """ChunkedLogProbFunction's backward: head + the scored hidden states e N D + a tile of logits, e 4096 x 32768 (or N
    rows), + dw and dh in fp32, 4 V D + 4 N D, and in bf16, e V D + e N D, as they are handed out, + 64 N."""
    e, N, D = run.size, run.scored, shape.head_width
    made = shape.head_parameters * shape.head_trained + N * D
    tile = e * min(N, TILE_ROWS) * TILE_COLUMNS
    return _gathered(shape, run) + e * N * D + tile + (4 + (e if run.bf16 else 0)) * made + 64 * N


def _ours(shape: Shape, run: Run) -> int:
    """The workspace, fp32 dw, dh; train/memory.py, _head_ours."""
    return estimate(shape, run).head_ours


def _gathered(shape: Shape, run: Run) -> int:
    """The whole weight, under ZeRO-3."""
    return run.size * shape.head_parameters if run.stage == 3 else 0


HEADS = {
    head.name: head
    for head in (
        # cast: e + 4; log_softmax: 4 + 4; backward: zeros of gather 4, softmax 4 + 4 + 4, cast 4 + e
        Head(name="naive", products=3, frozen=2, scored_only=False, memory=_naive, moved=lambda e: 32 + 2 * e),
        # read for the largest, the sum, the mean of logits, the gradient in fp32, cast; 3 G if frozen before 0.8.5
        Head(name="liger", products=3, frozen=2, scored_only=False, memory=_liger, moved=lambda e: 8 + 5 * e),
        # read into the running sums; read and written as the gradient
        Head(name="trl", products=4, frozen=3, scored_only=True, memory=_trl, moved=lambda e: 3 * e),
        # fp32 logits of a few rows read twice, exponentials written; the fused kernel moves less
        Head(name="ours", products=3, frozen=2, scored_only=True, memory=_ours, moved=lambda e: 8 + e),
    )
}
