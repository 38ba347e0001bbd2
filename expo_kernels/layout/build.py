"""Padded labels or packed rows -> Batch, validated on host tensors.

Both layouts compact to one and the same Batch: prompts and padding (label -100) are gone, the tokens of a sequence
stand together. Raw labels on a device cost one synchronisation here; a collator that builds the Batch on the host
and moves it with Batch.to costs none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.types import IGNORE, Batch, HostLayout

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def from_padded(
    labels: Tensor,
    *,
    roles: int = 2,
    anchors: int = 0,
    anchor_weights: Tensor | None = None,
    forward_only: int = 0,
    token_weights: Tensor | str | None = None,
) -> Batch:
    """labels [S, T], labels[i, t] the token that hidden[i, t] predicts or -100 -> Batch.

    The first S - anchors - forward_only sequences are groups of `roles`, role by role: for pairs all chosen, then all
    rejected. token_weights: [S, T], or "mean" for one over the sequence's length.
    """
    where = "from_padded"
    if labels.ndim != 2:
        raise ValueError(f"{where}: want labels [S, T], got {tuple(labels.shape)}")
    S, T = labels.shape
    segments = torch.arange(S, device="cpu").repeat_interleave(T)
    return _assemble(
        where, labels, segments, torch.arange(S * T, device="cpu"), S, roles, anchors, anchor_weights, forward_only,
        token_weights, leading_shape=(S, T), row_count=S * T,
    )  # fmt: skip


def from_packed(
    labels: Tensor,
    cu_seqlens: Tensor,
    *,
    roles: int = 2,
    anchors: int = 0,
    anchor_weights: Tensor | None = None,
    forward_only: int = 0,
    token_weights: Tensor | str | None = None,
    rows: Tensor | None = None,
) -> Batch:
    """labels [L] and cu_seqlens [S+1] -> Batch; sequences in the order of from_padded, -100 allowed.

    rows [L]: the hidden row behind each label, where that is not its own position. A row may serve several labels
    (the last token of a shared prompt predicts the first of both responses); their gradients are summed.
    """
    where = "from_packed"
    if labels.ndim != 1:
        raise ValueError(f"{where}: want labels [L], got {tuple(labels.shape)}")
    L = labels.shape[0]
    offsets = _integers(where, "cu_seqlens", cu_seqlens)
    if offsets.ndim != 1 or offsets.numel() < 2:
        raise ValueError(f"{where}: want cu_seqlens [S+1] with S >= 1, got {tuple(offsets.shape)}")
    steps = offsets.diff()
    if bool((steps < 0).any()):
        at = int((steps < 0).nonzero()[0])
        raise ValueError(
            f"{where}: want cu_seqlens that never falls, got {int(offsets[at])} then {int(offsets[at + 1])} at {at}"
        )
    if int(offsets[0]) != 0 or int(offsets[-1]) != L:
        raise ValueError(f"{where}: want cu_seqlens from 0 to {L}, got {int(offsets[0])} to {int(offsets[-1])}")
    S = offsets.numel() - 1
    if rows is None:
        row_index, row_count = torch.arange(L, device="cpu"), L
    else:
        row_index, row_count = _integers(where, "rows", rows), None
        if row_index.shape != (L,):
            raise ValueError(f"{where}: want rows [{L}], one for each label, got {tuple(row_index.shape)}")
    return _assemble(
        where, labels, torch.arange(S, device="cpu").repeat_interleave(steps), row_index, S, roles, anchors,
        anchor_weights, forward_only, token_weights, leading_shape=None, row_count=row_count,
    )  # fmt: skip


def _assemble(
    where: str, labels: Tensor, segments: Tensor, rows: Tensor, S: int, roles: int, anchors: int,
    anchor_weights: Tensor | None, forward_only: int, token_weights: Tensor | str | None, *,
    leading_shape: tuple[int, ...] | None, row_count: int | None,
) -> Batch:  # fmt: skip
    """Flat positions with their sequence and hidden row -> Batch, on the device that the labels came from."""
    groups = _group_count(where, S, roles, anchors, forward_only)
    flat = _integers(where, "labels", labels).flatten()
    wrong = (flat < 0) & (flat != IGNORE)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(f"{where}: want labels >= 0 or {IGNORE}, got {int(flat[at])} at position {at}")
    scored = (flat != IGNORE).nonzero()[:, 0]
    y, seg, row = flat[scored], segments[scored], rows[scored]
    if row.numel() and int(row.min()) < 0:
        raise ValueError(f"{where}: want rows >= 0, got {int(row.min())}")
    lengths = torch.bincount(seg, minlength=S)
    order = _group_order(seg, roles, groups)
    host = HostLayout(
        lengths=tuple(lengths.tolist()),
        roles=roles,
        groups=groups,
        anchors=anchors,
        forward_only=forward_only,
        leading_shape=leading_shape,
        row_count=row_count,
        max_row=int(row.max()) if row.numel() else -1,
        max_label=int(y.max()) if y.numel() else -1,
        repeated_rows=bool(row.unique().numel() < row.numel()),
        mean_weights=isinstance(token_weights, str),
    )
    return Batch(
        rows=row,
        labels=y,
        segments=seg,
        offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        lengths=lengths,
        by_group=order,
        token_weights=_token_weights(where, token_weights, labels.shape, scored, lengths[seg]),
        anchor_weights=_anchor_weights(where, anchor_weights, anchors),
        host=host,
    ).to(labels.device)


def _group_count(where: str, S: int, roles: int, anchors: int, forward_only: int) -> int:
    for name, value, least in (("roles", roles, 1), ("anchors", anchors, 0), ("forward_only", forward_only, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{where}: want {name} an integer >= {least}, got {value!r}")
    grouped = S - anchors - forward_only
    if S < 1 or grouped < 0:
        raise ValueError(f"{where}: want at least {max(anchors + forward_only, 1)} sequences, got {S}")
    if grouped % roles:
        raise ValueError(
            f"{where}: want {roles} sequences a group, got {grouped} sequences "
            f"({S} less {anchors} anchors and {forward_only} forward-only)"
        )
    return grouped // roles


def _group_order(segments: Tensor, roles: int, groups: int) -> Tensor | None:
    """The tokens group by group: sequence k * P + p moves to place p * K + k; anchors and the rest stay behind."""
    if roles == 1 or groups < 2:
        return None
    place = torch.where(segments < roles * groups, segments % groups * roles + segments // groups, segments)
    return torch.argsort(place, stable=True)


def _token_weights(
    where: str, weights: Tensor | str | None, shape: torch.Size, scored: Tensor, length: Tensor
) -> Tensor | None:
    if weights is None:
        return None
    if isinstance(weights, str):
        if weights != "mean":
            raise ValueError(f'{where}: want token_weights a tensor or "mean", got {weights!r}')
        return 1.0 / length.float()
    if weights.shape != shape:
        raise ValueError(f"{where}: want token_weights of the labels' shape {tuple(shape)}, got {tuple(weights.shape)}")
    chosen = weights.detach().cpu().float().flatten()[scored]
    if not bool(chosen.isfinite().all()):
        raise ValueError(f"{where}: want finite token_weights, got {chosen[~chosen.isfinite()][0].item()}")
    return chosen


def _anchor_weights(where: str, weights: Tensor | None, anchors: int) -> Tensor | None:
    if weights is None:
        return torch.ones(anchors, device="cpu") if anchors else None
    if weights.shape != (anchors,):
        raise ValueError(f"{where}: want anchor_weights [{anchors}], got {tuple(weights.shape)}")
    values = weights.detach().cpu().float()
    if not bool(values.isfinite().all()):
        raise ValueError(f"{where}: want finite anchor_weights, got {values.tolist()}")
    return values if anchors else None


def _integers(where: str, name: str, values: Tensor) -> Tensor:
    if values.dtype not in _INTEGERS:
        raise TypeError(f"{where}: want integer {name}, got {values.dtype}")
    return values.detach().cpu().long()
