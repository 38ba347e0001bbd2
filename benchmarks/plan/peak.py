"""The memory that one rank is expected to take, part by part: ZeRO's arithmetic, the traced body, a head's formula."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.plan.heads import HEADS
from benchmarks.plan.job import Job
from benchmarks.plan.traced import Traced
from train.memory import Run, Shape, estimate

TRACED = "activations of the body"  # train/memory.py has a formula for it, here it is traced
HEAD, BACKWARD = "loss head", "backward of the body"


class Peak(NamedTuple):
    """Bytes."""

    standing: tuple[tuple[str, int], ...]  # all the time
    moments: tuple[tuple[str, int], ...]  # above that, one after the other
    activations: int  # of the body, while the head runs
    head: int

    @property
    def moment(self) -> str:
        """When the peak is."""
        return max(self.moments, key=lambda moment: moment[1])[0]

    @property
    def above(self) -> int:
        """What comes and goes, at the peak."""
        return max(size for _, size in self.moments)

    @property
    def total(self) -> int:
        return sum(size for _, size in self.standing) + self.above

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """What stands, and of what comes and goes the three that can be the peak."""
        later = ((TRACED, self.activations), (HEAD, self.head))
        return (*self.standing, *later, *(moment for moment in self.moments if moment[0] == BACKWARD))


def peak(job: Job, head: str) -> Peak:
    return peak_of(job.shape, job.run, job.body(), head)


def peak_of(shape: Shape, run: Run, body: Traced, head: str) -> Peak:
    """Not in it: fragmentation, the libraries' own memory, layers that DeepSpeed keeps gathered for their next use."""
    standing = tuple(part for part in estimate(shape, run).parts if part[0] != TRACED)
    top = HEADS[head].memory(shape, run)
    embedding = shape.head_parameters * (shape.head_trained or not shape.tied)  # its gradient is as large as a head's
    moments = (
        ("forward of the body", round(body.forward)),
        (HEAD, round(body.standing) + top),
        (BACKWARD, round(body.backward)),
        ("gradient of the embedding", run.size * (embedding + run.positions * shape.hidden)),
    )
    return Peak(standing, moments, round(body.standing), top)
