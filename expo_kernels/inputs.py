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
    where: str, hidden: Tensor, weight: Tensor, batch: Batch, head: HeadOptions, execution: Execution
) -> Problem:
    for name, value, kind in (
        ("hidden", hidden, Tensor), ("weight", weight, Tensor), ("head", head, HeadOptions),
        ("execution", execution, Execution),
    ):  # fmt: skip
        _check_type(where, name, value, kind)
    if execution.sparsity is not None:
        raise NotImplementedError(f"{where}: sparsity is not part of this version; None is the exact gradient")
    if hidden.ndim < 2 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1] or 0 in weight.shape:
        raise ValueError(
            f"{where}: want hidden [..., D] and weight [V, D], got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if not hidden.is_floating_point() or not weight.is_floating_point():
        raise TypeError(f"{where}: want floating point hidden and weight, got {hidden.dtype} and {weight.dtype}")
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
    elif skip not in (True, False):
        raise ValueError(f"{where}: want skip_inactive True, False or None, got {skip!r}")
    elif skip and torch.compiler.is_compiling():
        raise ValueError(f"{where}: skip_inactive depends on data and cannot be compiled; want None or False")
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
    _ = problem.chunk_rows  # the backend's own check: a workspace too small for one row raises here, before any work
    return problem


def as_batch(where: str, batch: Batch | Tensor, roles: int) -> Batch:
    """A label tensor is padded labels of groups of `roles`."""
    if isinstance(batch, Tensor):
        if torch.compiler.is_compiling():
            raise ValueError(f"{where}: want a Batch (expo_kernels.layout) in compiled code, got a label tensor")
        return from_padded(batch, roles=roles)
    _check_type(where, "batch", batch, Batch)
    return batch


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
        columns=_columns(where, objective, batch, columns or {}),
        divisors=_divisors(where, name, needs, batch, divisor),
        forward_only_lengths=batch.lengths[len(host.lengths) - F :],
        forward_only_reference=checked[..., -F:] if checked is not None and needs.forward_only else None,
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
        hint = ""
        if len(leading) == 2 and leading[1] == host.leading_shape[1] + 1:
            hint = " (hidden[:, :-1] predicts labels[:, 1:])"
        raise ValueError(
            f"{where}: want hidden {[*host.leading_shape, 'D']} for these labels, got {[*leading, 'D']}{hint}"
        )
    if host.row_count is not None and host.row_count != M:
        raise ValueError(f"{where}: want {host.row_count} rows of hidden, one for each label, got {M}")
    if host.max_row >= M:
        raise ValueError(f"{where}: want rows below {M}, the rows of hidden, got {host.max_row}")
    if host.max_label >= V:
        raise ValueError(f"{where}: want labels below the vocabulary of {V}, got {host.max_label}")
    _check_device(where, "weight", weight, hidden.device)
    _check_device(where, "the batch", batch.rows, hidden.device)


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
        _check_device(where, "bias", bias, hidden.device)
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
    """[S] or [K * P] (or [R, ...]), in the caller's order, as it came."""
    host = batch.host
    if not needs.reference:
        if reference is not None:
            raise ValueError(f"{where}: {name} uses no reference, and one was given")
        return None
    if reference is not None:
        _check_type(where, "reference", reference, Tensor)
    S, grouped = len(host.lengths), host.grouped_sequences
    want = f"[{S}]" + (f" or [R, {S}]" if needs.several_references else "")
    if reference is None:
        raise ValueError(f"{where}: {name} needs reference log-probs (sums) {want}, got None")
    dims = (1, 2) if needs.several_references else (1,)
    enough = (S,) if needs.forward_only else (S, grouped)
    if reference.ndim not in dims or reference.shape[-1] not in enough:
        raise ValueError(f"{where}: want reference {want}, got {tuple(reference.shape)}")
    if not reference.is_floating_point():
        raise TypeError(f"{where}: want floating point reference, got {reference.dtype}")
    _check_device(where, "reference", reference, batch.labels.device)
    _check_finite(where, "finite reference log-probs", reference)
    if batch.token_weights is None and _on_host(reference) and bool((reference > 1e-3).any()):
        raise ValueError(f"{where}: want reference log-probs, none of them positive, got {reference.max().item()}")
    return reference.detach()


def _columns(where: str, objective: Objective, batch: Batch, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    host, needs, name = batch.host, objective.needs, type(objective).__name__
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
        _check_type(where, f"column {key}", column, Tensor)
        if tuple(column.shape) != shape:
            raise ValueError(f"{where}: want column {key} {list(shape)}, got {list(column.shape)}")
        _check_device(where, f"column {key}", column, batch.labels.device)
        _check_finite(where, f"a finite column {key}", column)
        column = column.detach()
        out[key] = column.view(K, P) if key in needs.sequence_columns else column
    check = getattr(objective, "check_columns", None)
    if check is not None and all(_on_host(column) for column in out.values()):
        try:
            check(out)
        except ValueError as error:
            raise ValueError(f"{where}: {name}: {error}") from None
    return out


def _divisors(where: str, name: str, needs: Needs, batch: Batch, divisor: float | Tensor | Divisors | None) -> Counts:
    """A single number is the objective's own divisor; where a loss has more than one, each must be named."""
    if isinstance(divisor, Divisors):
        given = divisor
    elif divisor is not None and (batch.host.anchors or needs.mixes_divisors):
        raise ValueError(
            f"{where}: {name} on this batch divides by more than one count; "
            f"want divisor=Divisors(groups=..., anchors=..., tokens=...), got {divisor!r}"
        )
    else:
        given = Divisors(tokens=divisor) if needs.divisor == "tokens" else Divisors(groups=divisor)
    own = default_divisors(batch.host)
    named = zip(Divisors._fields, given, own, strict=True)
    return Counts(*(default if value is None else _one_number(where, key, value) for key, value, default in named))


def _one_number(where: str, name: str, value: float | Tensor) -> float | Tensor:
    """A positive number; on a device it stays there, as a scalar."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{where}: want one number as divisor of {name}, got {tuple(value.shape)}")
        if not _on_host(value):
            return value.detach().reshape(())
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < float("inf"):
        raise ValueError(f"{where}: want a positive divisor of {name}, got {value!r}")
    return value


def _check_type(where: str, name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{where}: want {name} a {kind.__name__}, got {type(value).__name__}")


def _on_host(values: Tensor) -> bool:
    """Whether its values may be looked at: a device is never asked, and a compiler has none."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_device(where: str, name: str, values: Tensor, device: torch.device) -> None:
    if values.device != device:
        raise ValueError(f"{where}: want {name} on {device}, where hidden is, got {values.device}")


def _check_finite(where: str, want: str, values: Tensor) -> None:
    if _on_host(values):
        bad = ~values.isfinite()
        if bool(bad.any()):
            raise ValueError(f"{where}: want {want}, got {values[bad][0].item()}")
