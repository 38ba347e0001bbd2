"""Which columns of the vocabulary a step's gradient may leave out (docs/sparsity.md)."""

from __future__ import annotations

import hashlib

from expo_kernels.sparsity import Certified, Sparsity, Unbiased
from train.settings import Settings


def sparsity_rule(settings: Settings, step: int, micro: int, rank: int) -> Sparsity | None:
    """Draws are a function of the run's seed, the step, the micro-batch and the rank."""
    model = settings.model
    if model.sparsity == "certified":
        return Certified(tau=model.sparsity_tau)
    if model.sparsity == "unbiased":
        name = f"{settings.training.seed} {step} {micro} {rank}".encode()
        digest = hashlib.blake2b(name, digest_size=8).digest()
        return Unbiased(theta=model.sparsity_theta, seed=int.from_bytes(digest, "big") >> 1)
    return None
