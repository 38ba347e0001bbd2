"""Token weights that an objective declares: where in its sequence a token stands decides what it counts."""

from __future__ import annotations

from dataclasses import replace

import torch

from expo_kernels.types import Batch, Objective


def with_declared_weights(objective: Objective, batch: Batch, where: str = "with_declared_weights") -> Batch:
    """objective.token_weights(batch) [N], times the weights that the batch has already; a batch that has them stays.

    For a reference pass, whose sums must carry the same weights. The batch that comes out may go to the loss as well.
    """
    if not isinstance(batch, Batch):
        raise TypeError(f"{where}: want batch a Batch (from_padded, from_packed), got {type(batch).__name__}")
    if not objective.needs.token_weights:
        return batch
    name = type(objective).__name__
    if batch.host.weighted_by is not None:
        if batch.host.weighted_by != objective:
            raise ValueError(f"{where}: the batch has the token weights of {batch.host.weighted_by}, got {objective}")
        return batch
    weights = objective.token_weights(batch)  # type: ignore[attr-defined]
    if tuple(weights.shape) != tuple(batch.labels.shape):
        raise ValueError(
            f"{where}: want token_weights of {name} one a token {tuple(batch.labels.shape)}, got {tuple(weights.shape)}"
        )
    if weights.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(weights.isfinite().all()):
        bad = weights[~weights.isfinite()][0].item()
        raise ValueError(f"{where}: want finite token_weights of {name}, got {bad}")
    weights = weights.to(batch.labels.device, torch.float32)
    own = batch.token_weights
    host = replace(batch.host, weighted_by=objective)
    return replace(batch, token_weights=weights if own is None else own * weights, host=host)
