"""What one rank trains in a step, and its numbers as train/memory.py wants them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from benchmarks.plan import traced
from benchmarks.plan.traced import Traced
from tools import models
from train.memory import Run, Shape

REFERENCE_LENGTH = 8192  # positions of a traced sequence; the trace is linear in them


@dataclass(frozen=True, kw_only=True)
class Job:
    """One micro-batch of pairs without padding between them, at stage 3 unless said otherwise, with Adam."""

    model: str  # of tools.models.MODELS
    ranks: int
    pairs: int  # of a rank
    length: int  # positions of one sequence: prompt and response
    masked: float = 0.5  # the share of the positions that is prompt or padding: not scored
    checkpointing: bool = True
    frozen_head: bool = False
    reference_engine: bool = False  # a sharded frozen model; False: cached reference log-probs
    offload: bool = False  # optimizer states and weights on the host, train/configs/zero3_offload.json
    bf16: bool = True
    stage: int = 3
    workspace_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("ranks", "pairs", "length", "workspace_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"Job: want {name} >= 1, got {getattr(self, name)}")
        if not 0 <= self.masked < 1:
            raise ValueError(f"Job: want masked from 0 to less than 1, got {self.masked}")

    @property
    def sequences(self) -> int:
        return 2 * self.pairs

    @property
    def positions(self) -> int:
        """M."""
        return self.sequences * self.length

    @property
    def scored(self) -> int:
        """N."""
        return max(1, round((1 - self.masked) * self.positions))

    @property
    def shape(self) -> Shape:
        whole = models.shape(self.model)
        if not self.frozen_head:
            return whole
        return dataclasses.replace(whole, trained=whole.trained - whole.head_parameters, head_trained=False)

    @property
    def run(self) -> Run:
        shape = self.shape
        size = 2 if self.bf16 else 4
        return Run(
            ranks=self.ranks, stage=self.stage, bf16=self.bf16, offload_optimizer=self.offload,
            offload_param=self.offload, checkpointing=self.checkpointing, sequences=self.sequences, length=self.length,
            scored=self.scored, workspace_bytes=self.workspace_bytes, reference_engine=self.reference_engine,
            buffer_bytes=size * shape.hidden**2 if self.stage else 0,  # what "auto" makes of reduce_bucket_size
        )  # fmt: skip

    def body(self, *, checkpointing: bool | None = None) -> Traced:
        """checkpointing: another than the job's own."""
        asked = self.checkpointing if checkpointing is None else checkpointing
        made = traced.body(self.model, bf16=self.bf16, checkpointing=asked, length=REFERENCE_LENGTH)
        return made.at(self.shape.layers, self.sequences, self.length)
