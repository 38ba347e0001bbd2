"""The longest pair of responses that fits a card."""

from __future__ import annotations

import dataclasses

from benchmarks.plan.cards import Card
from benchmarks.plan.job import Job
from benchmarks.plan.peak import peak

STEP = 128  # positions
MOST = 1 << 20


def fits(job: Job, head: str, card: Card) -> bool:
    return peak(job, head).total <= card.usable_bytes


def longest(job: Job, head: str, card: Card) -> int:
    """The length of each of the job's sequences, in steps of STEP up to MOST; 0 where not one step fits."""
    low, high = 0, MOST // STEP
    while low < high:
        middle = (low + high + 1) // 2
        if fits(dataclasses.replace(job, length=middle * STEP), head, card):
            low = middle
        else:
            high = middle - 1
    return low * STEP
