"""Objective, reference and columns, lined up with what the objective declares -> Evaluation."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from expo_kernels.inputs.checks import check_device, check_finite, check_type, on_host
from expo_kernels.inputs.divisors import make_divisors
from expo_kernels.ops.evaluate import Evaluation
from expo_kernels.types import Batch, Divisors, Needs, Objective


def make_evaluation(
    where: str,
    objective: Objective,
    batch: Batch,
    reference: Tensor | None,
    columns: Mapping[str, Tensor] | None,
    divisor: float | Tensor | Divisors | None,
) -> Evaluation:
    if isinstance(objective, type) or not isinstance(objective, Objective):
        raise TypeError(f"{where}: want an objective (make_objective(...) or your own instance), got {objective!r}")
    needs, host = objective.needs, batch.host
    name = type(objective).__name__
    if needs.roles is not None and needs.roles != host.roles:
        raise ValueError(f"{where}: {name} wants groups of {needs.roles}, got a batch with groups of {host.roles}")
    if needs.lengths and host.mean_weights:
        raise ValueError(f'{where}: {name} divides by lengths, and the batch\'s token_weights="mean" does so already')
    if needs.divisor not in ("groups", "tokens"):
        raise ValueError(f'{where}: {name} wants divisor "groups" or "tokens", got {needs.divisor!r}')
    _check_anchors(where, name, needs, batch, divisor)
    if needs.forward_only and not host.forward_only:
        raise ValueError(f"{where}: {name} looks at forward-only sequences, and the batch has none")
    K, P, F = host.roles, host.groups, host.forward_only
    checked = _reference(where, name, needs, batch, reference)
    return Evaluation(
        objective=objective,
        lengths=batch.lengths[: K * P].view(K, P),
        reference=None if checked is None else checked[..., : K * P].reshape(*checked.shape[:-1], K, P),
        columns=_columns(where, objective, batch, {} if columns is None else columns),
        divisors=make_divisors(where, name, needs, batch, divisor),
        forward_only_lengths=batch.lengths[len(host.lengths) - F :],
        forward_only_reference=checked[..., -F:] if checked is not None and needs.forward_only else None,
    )


def _check_anchors(
    where: str, name: str, needs: Needs, batch: Batch, divisor: float | Tensor | Divisors | None
) -> None:
    anchors = batch.host.anchors
    if anchors and needs.anchor_scale is None:
        raise ValueError(f"{where}: the batch has {anchors} anchors, and {name} takes none")
    told = isinstance(divisor, Divisors) and divisor.anchors is not None
    if not anchors and needs.anchor_scale is not None and not told:
        raise ValueError(
            f"{where}: {name} averages over anchors, and the batch has none "
            "(a micro-batch may, when divisor=Divisors(anchors=...) says what the step has)"
        )


def _reference(where: str, name: str, needs: Needs, batch: Batch, reference: Tensor | None) -> Tensor | None:
    """[S] or [K * P] (or [R, ...]), in the caller's order, as it came."""
    host = batch.host
    if not needs.reference:
        if reference is not None:
            raise ValueError(f"{where}: {name} uses no reference, and one was given")
        return None
    if reference is not None:
        check_type(where, "reference", reference, Tensor)
    S, grouped = len(host.lengths), host.grouped_sequences
    want = f"[{S}]" + (f" or [R, {S}]" if needs.several_references else "")
    if reference is None:
        raise ValueError(f"{where}: {name} needs reference log-probs (sums) {want}, got None")
    if reference.ndim == 2 and reference.shape[0] == 0:
        raise ValueError(f"{where}: want at least one reference, got {tuple(reference.shape)}")
    dims = (1, 2) if needs.several_references else (1,)
    enough = (S,) if needs.forward_only else (S, grouped)
    if reference.ndim not in dims or reference.shape[-1] not in enough:
        raise ValueError(f"{where}: want reference {want}, got {tuple(reference.shape)}")
    if not reference.is_floating_point():
        raise TypeError(f"{where}: want floating point reference, got {reference.dtype}")
    check_device(where, "reference", reference, batch.labels.device)
    check_finite(where, "finite reference log-probs", reference)
    if batch.token_weights is None and on_host(reference) and bool((reference > 1e-3).any()):
        raise ValueError(f"{where}: want reference log-probs, none of them positive, got {reference.max().item()}")
    return reference.detach()


def _columns(where: str, objective: Objective, batch: Batch, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    host, needs, name = batch.host, objective.needs, type(objective).__name__
    check_type(where, "columns", columns, Mapping)
    K, P = host.roles, host.groups
    declared = {**dict.fromkeys(needs.columns, (P,)), **dict.fromkeys(needs.sequence_columns, (K * P,))}
    missing, unknown = sorted(declared.keys() - columns.keys()), sorted(columns.keys() - declared.keys())
    if missing or unknown:
        raise ValueError(
            f"{where}: {name} wants the columns {sorted(declared) or 'none'}, "
            f"missing {missing or 'none'}, not used {unknown or 'none'}"
        )
    out = {}
    for key, shape in declared.items():
        column = columns[key]
        check_type(where, f"column {key}", column, Tensor)
        if tuple(column.shape) != shape:
            raise ValueError(f"{where}: want column {key} {list(shape)}, got {list(column.shape)}")
        if column.is_complex():
            raise TypeError(f"{where}: want column {key} of real numbers, got {column.dtype}")
        check_device(where, f"column {key}", column, batch.labels.device)
        check_finite(where, f"a finite column {key}", column)
        column = column.detach()
        out[key] = column.view(K, P) if key in needs.sequence_columns else column
    check = getattr(objective, "check_columns", None)
    if check is not None and all(on_host(column) for column in out.values()):
        try:
            check(out)
        except ValueError as error:
            raise ValueError(f"{where}: {name}: {error}") from None
    return out
