"""Padded labels or packed rows -> Batch, and the plan of chunks over it. All of it on the host."""

from expo_kernels.layout.build import from_packed, from_padded
from expo_kernels.layout.counts import default_divisors, empty_groups
from expo_kernels.layout.plan import Unit, chunk_plan, split_parts
from expo_kernels.layout.weights import with_declared_weights

__all__ = [
    "Unit",
    "chunk_plan",
    "default_divisors",
    "empty_groups",
    "from_packed",
    "from_padded",
    "split_parts",
    "with_declared_weights",
]
