"""What a caller passes -> what ops takes. All checks of shapes, dtypes and values stand here, before any work.

Values are checked on host tensors only; what lies on a device is never asked, and a bad value met there gives NaN in
its group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from expo_kernels.kernels.resolve import resolve
from expo_kernels.layout import default_divisors, from_padded
from expo_kernels.ops.evaluate import Evaluation
from expo_kernels.ops.problem import Problem
from expo_kernels.types import Batch, Counts, Divisors, Execution, HeadOptions, Needs, Objective

DEFAULT_WORKSPACE = 1 << 30
STATS = ("entropy", "is_argmax")


def make_problem(
    where: str, hidden: Tensor, weight: Tensor, batch: Batch | Tensor, head: HeadOptions, execution: Execution
) -> Problem:
    if execution.sparsity is not None:
        raise NotImplementedError(f"{where}: sparsity is not part of this version; None is the exact gradient")
    if hidden.ndim < 2 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{where}: want hidden [..., D] and weight [V, D], got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if not hidden.is_floating_point() or not weight.is_floating_point():
        raise TypeError(f"{where}: want floating point hidden and weight, got {hidden.dtype} and {weight.dtype}")
    if isinstance(batch, Tensor):
        batch = from_padded(batch)
    _check_batch(where, hidden, weight, batch)
    dtype = _product_dtype(where, hidden, weight)
    workspace_bytes = DEFAULT_WORKSPACE if execution.workspace_bytes is None else execution.workspace_bytes
    if isinstance(workspace_bytes, bool) or not isinstance(workspace_bytes, int) or workspace_bytes <= 0:
        raise ValueError(f"{where}: want workspace_bytes a positive integer, got {workspace_bytes!r}")
    _check_head(where, hidden, weight, head)
    _check_out(where, weight, execution.weight_gradient_out, dtype)
    skip = execution.skip_inactive
    if skip is None:
        skip = hidden.device.type == "cpu" and not torch.compiler.is_compiling()
    problem = Problem(
        hidden=hidden,
        weight=weight,
        bias=head.bias,
        softcap=None if head.softcap is None else float(head.softcap),
        scale=float(head.logit_scale),
        dtype=dtype,
        backend=resolve(execution.backend, hidden.device).backend,
        workspace_bytes=workspace_bytes,
        batch=batch,
        weight_gradient_out=execution.weight_gradient_out,
        skip_inactive=skip,
    )
    assert problem.chunk_rows > 0, "the backend refuses a workspace too small for one row"
    return problem


def make_evaluation(
    where: str,
    objective: Objective,
    batch: Batch,
    reference: Tensor | None,
    columns: Mapping[str, Tensor] | None,
    divisor: float | Tensor | Divisors | None,
) -> Evaluation:
    needs, host = objective.needs, batch.host
    name = type(objective).__name__
    if needs.roles is not None and needs.roles != host.roles:
        raise ValueError(f"{where}: {name} wants groups of {needs.roles}, got a batch with groups of {host.roles}")
    if needs.lengths and host.mean_weights:
        raise ValueError(f'{where}: {name} divides by lengths, and the batch\'s token_weights="mean" does so already')
    if needs.divisor not in ("groups", "tokens"):
        raise ValueError(f'{where}: {name} wants divisor "groups" or "tokens", got {needs.divisor!r}')
    _check_anchors(where, name, needs, batch, divisor)
    K, P = host.roles, host.groups
    return Evaluation(
        objective=objective,
        lengths=batch.lengths[: K * P].view(K, P),
        reference=_reference(where, name, needs, batch, reference),
        columns=_columns(where, name, needs, batch, columns or {}),
        divisors=_divisors(where, batch, divisor),
    )


def check_stats(where: str, stats: tuple[str, ...]) -> None:
    if isinstance(stats, str):
        raise TypeError(f"{where}: want stats a tuple of names, got the string {stats!r}")
    for name in stats:
        if name not in STATS:
            raise ValueError(f"{where}: want stats out of {', '.join(STATS)}, got {name!r}")


def _check_batch(where: str, hidden: Tensor, weight: Tensor, batch: Batch) -> None:
    host, leading = batch.host, tuple(hidden.shape[:-1])
    M, V = hidden.shape[:-1].numel(), weight.shape[0]
    if host.leading_shape is not None and leading != host.leading_shape and leading != (host.row_count,):
        raise ValueError(f"{where}: want hidden {[*host.leading_shape, 'D']} for these labels, got {[*leading, 'D']}")
    if host.row_count is not None and host.row_count != M:
        raise ValueError(f"{where}: want {host.row_count} rows of hidden, one for each label, got {M}")
    if host.max_row >= M:
        raise ValueError(f"{where}: want rows below {M}, the rows of hidden, got {host.max_row}")
    if host.max_label >= V:
        raise ValueError(f"{where}: want labels below the vocabulary of {V}, got {host.max_label}")
    for name, tensor in (("weight", weight), ("the batch", batch.rows)):
        if tensor.device != hidden.device:
            raise ValueError(f"{where}: want {name} on {hidden.device}, where hidden is, got {tensor.device}")


def _product_dtype(where: str, hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Under autocast what a linear layer would compute in; else the common dtype, which must be one."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (hidden.dtype, weight.dtype):
        return torch.get_autocast_dtype(kind)
    if hidden.dtype != weight.dtype:
        raise TypeError(
            f"{where}: want hidden and weight of one dtype (or autocast), got {hidden.dtype} and {weight.dtype}"
        )
    return hidden.dtype


def _check_head(where: str, hidden: Tensor, weight: Tensor, head: HeadOptions) -> None:
    bias = head.bias
    if bias is not None:
        if bias.shape != weight.shape[:1] or not bias.is_floating_point():
            raise ValueError(
                f"{where}: want bias [{weight.shape[0]}] of floating point, got {tuple(bias.shape)} {bias.dtype}"
            )
        if bias.device != hidden.device:
            raise ValueError(f"{where}: want bias on {hidden.device}, where hidden is, got {bias.device}")
    for name, value in (("softcap", head.softcap), ("logit_scale", head.logit_scale)):
        if name == "softcap" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < float("inf"):
            raise ValueError(f"{where}: want {name} a positive number, got {value!r}")


def _check_out(where: str, weight: Tensor, out: Tensor | None, dtype: torch.dtype) -> None:
    if out is None:
        return
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if out.shape != weight.shape or out.dtype != wide or out.device != weight.device or not out.is_contiguous():
        raise ValueError(
            f"{where}: want weight_gradient_out contiguous {tuple(weight.shape)} {wide} on {weight.device}, "
            f"got {tuple(out.shape)} {out.dtype} on {out.device}"
        )
    if out.requires_grad or (torch.is_grad_enabled() and not weight.requires_grad):
        raise ValueError(f"{where}: weight_gradient_out wants a weight that requires a gradient, and must not itself")


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
    """[S] or [K * P] (or [R, ...]) in the caller's order -> [K, P] or [R, K, P]."""
    host = batch.host
    if not needs.reference:
        if reference is not None:
            raise ValueError(f"{where}: {name} uses no reference, and one was given")
        return None
    S, grouped = len(host.lengths), host.grouped_sequences
    want = f"[{S}]" + (f" or [R, {S}]" if needs.several_references else "")
    if reference is None:
        raise ValueError(f"{where}: {name} needs reference log-probs (sums) {want}, got None")
    dims = (1, 2) if needs.several_references else (1,)
    if reference.ndim not in dims or reference.shape[-1] not in (S, grouped):
        raise ValueError(f"{where}: want reference {want}, got {tuple(reference.shape)}")
    if not reference.is_floating_point():
        raise TypeError(f"{where}: want floating point reference, got {reference.dtype}")
    _check_finite(where, "finite reference log-probs", reference)
    K, P = host.roles, host.groups
    kept = reference.detach()[..., :grouped].to(batch.labels.device)
    return kept.reshape(*reference.shape[:-1], K, P)


def _columns(where: str, name: str, needs: Needs, batch: Batch, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    host = batch.host
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
        if tuple(column.shape) != shape:
            raise ValueError(f"{where}: want column {key} {list(shape)}, got {list(column.shape)}")
        _check_finite(where, f"a finite column {key}", column)
        column = column.detach().to(batch.labels.device)
        out[key] = column.view(K, P) if key in needs.sequence_columns else column
    return out


def _divisors(where: str, batch: Batch, divisor: float | Tensor | Divisors | None) -> Counts:
    given = divisor if isinstance(divisor, Divisors) else Divisors(groups=divisor)
    for name, value in zip(Divisors._fields, given, strict=True):
        if value is None:
            continue
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"{where}: want one number as divisor of {name}, got {tuple(value.shape)}")
            if value.device.type != "cpu" or torch.compiler.is_compiling():
                continue
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < float("inf"):
            raise ValueError(f"{where}: want a positive divisor of {name}, got {value!r}")
    own = default_divisors(batch.host)
    return Counts(*(d if g is None else g for g, d in zip(given, own, strict=True)))


def _check_finite(where: str, want: str, values: Tensor) -> None:
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = ~values.isfinite()
        if bool(bad.any()):
            raise ValueError(f"{where}: want {want}, got {values[bad][0].item()}")
