"""Hidden states, weight, batch, head and execution -> Problem."""

from __future__ import annotations

import torch
from torch import Tensor

from expo_kernels.inputs.checks import check_device, check_type
from expo_kernels.kernels.resolve import resolve
from expo_kernels.layout import from_padded
from expo_kernels.ops.problem import Problem
from expo_kernels.sparsity import Sparsity
from expo_kernels.types import Batch, Execution, HeadOptions

DEFAULT_WORKSPACE = 1 << 30
STATS = ("entropy", "is_argmax")


def make_problem(
    where: str, hidden: Tensor, weight: Tensor, batch: Batch, head: HeadOptions, execution: Execution
) -> Problem:
    for name, value, kind in (
        ("hidden", hidden, Tensor), ("weight", weight, Tensor), ("head", head, HeadOptions),
        ("execution", execution, Execution),
    ):  # fmt: skip
        check_type(where, name, value, kind)
    _check_sparsity(where, execution)
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
        sparsity=execution.sparsity,
        on_sparsity=execution.on_sparsity,
    )
    _ = problem.chunk_rows  # the backend's own check: a workspace too small for one row raises here, before any work
    return problem


def _check_sparsity(where: str, execution: Execution) -> None:
    rule, told = execution.sparsity, execution.on_sparsity
    if rule is not None and not isinstance(rule, Sparsity):
        raise TypeError(f"{where}: want sparsity None, Certified(...) or Unbiased(...), got {rule!r}")
    if told is not None and not callable(told):
        raise TypeError(f"{where}: want on_sparsity a function of a SparsityReport, got {told!r}")
    if told is not None and rule is None:
        raise ValueError(f"{where}: want on_sparsity with sparsity only, got no rule to report on")


def as_batch(where: str, batch: Batch | Tensor, roles: int) -> Batch:
    """A label tensor is padded labels of groups of `roles`."""
    if isinstance(batch, Tensor):
        if torch.compiler.is_compiling():
            raise ValueError(f"{where}: want a Batch (expo_kernels.layout) in compiled code, got a label tensor")
        return from_padded(batch, roles=roles)
    check_type(where, "batch", batch, Batch)
    return batch


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
    check_device(where, "weight", weight, hidden.device)
    check_device(where, "the batch", batch.rows, hidden.device)


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
        check_device(where, "bias", bias, hidden.device)
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
