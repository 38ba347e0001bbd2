"""Token weights that an objective declares: where in its sequence a token stands decides what it counts."""

from __future__ import annotations

from dataclasses import replace

import torch

from expo_kernels.types import Batch, Objective


def with_declared_weights(where: str, objective: Objective, batch: Batch) -> Batch:
    """objective.token_weights(batch) [N], times the weights that the batch has already."""
    if not objective.needs.token_weights:
        return batch
    weights = objective.token_weights(batch)  # type: ignore[attr-defined]
    if tuple(weights.shape) != tuple(batch.labels.shape):
        raise ValueError(
            f"{where}: want token_weights of {type(objective).__name__} one a token {tuple(batch.labels.shape)}, "
            f"got {tuple(weights.shape)}"
        )
    if weights.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(weights.isfinite().all()):
        bad = weights[~weights.isfinite()][0].item()
        raise ValueError(f"{where}: want finite token_weights of {type(objective).__name__}, got {bad}")
    weights = weights.to(batch.labels.device, torch.float32)
    own = batch.token_weights
    return replace(batch, token_weights=weights if own is None else own * weights)
