"""The buffers of dh, dw and db, and the autograd function that hands them out, times the upstream gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expo_kernels.kernels.contract import accumulator
from expo_kernels.kernels.ordered import ordered_add
from expo_kernels.kernels.sparse.totals import new_totals, report
from expo_kernels.ops.problem import Problem, Trains
from expo_kernels.sparsity import SparsityReport
from expo_kernels.types import Batch

_ROWS = 4096  # rows scaled at once on the way out, so that the fp32 copy stays small


def buffer_dtype(dtype: torch.dtype) -> torch.dtype:
    """What dh waits in until backward: fp16 could lose it before a loss scaler's factor arrives."""
    return torch.float32 if dtype == torch.float16 else dtype


class HiddenGradient:
    """dh [M, D], rows without a scored token 0.

    It has the dtype of hidden; fp32 for fp16, and the accumulator's where a row predicts several tokens, so that their
    sum is rounded once.
    """

    def __init__(self, like: Tensor, shape: torch.Size, dtype: torch.dtype, repeated: bool) -> None:
        """like: any tensor on the device; shape, dtype: of hidden."""
        buffer = accumulator(dtype) if repeated else buffer_dtype(dtype)
        self.dh = like.new_zeros(shape[:-1].numel(), shape[-1], dtype=buffer)
        self.repeated = repeated

    def add(self, rows: Tensor, dh: Tensor) -> None:
        """dh [n, D] of the tokens that `rows` [n] predict; repeats are summed in the tokens' order."""
        if self.repeated:
            ordered_add(self.dh, rows, dh.to(self.dh.dtype))
        else:
            self.dh.index_copy_(0, rows, dh.to(self.dh.dtype))

    def poison(self, rows: Tensor, bad: Tensor) -> None:
        """NaN to dh of every token marked in `bad` [n], without asking the device whether there is one."""
        nan_or_zero = torch.where(bad, torch.nan, 0.0).to(self.dh.dtype)[:, None]
        for i in range(0, rows.shape[0], _ROWS):
            r, values = rows[i : i + _ROWS], nan_or_zero[i : i + _ROWS].expand(-1, self.dh.shape[1])
            ordered_add(self.dh, r, values)


class Gradients(NamedTuple):
    """The buffers of one pass, each where wanted. dw and db stay in the accumulator's dtype until the upstream gradient
    has multiplied them."""

    hidden: HiddenGradient | None
    dw: Tensor | None  # [V, D]
    db: Tensor | None  # [V]
    totals: Tensor | None = None  # of what a sparse gradient left out (kernels/sparse/totals.py)


def new_gradients(problem: Problem, trains: Trains) -> Gradients:
    hidden, weight, out = problem.hidden, problem.weight, problem.weight_gradient_out
    wide, repeated = problem.accumulator, problem.batch.host.repeated_rows
    dw = out
    if trains.weight and out is None:
        dw = problem.backend.prepared(weight.new_empty(weight.shape, dtype=wide)).zero_()
    return Gradients(
        HiddenGradient(hidden, hidden.shape, hidden.dtype, repeated) if trains.hidden else None,
        dw if trains.weight else None,
        weight.new_zeros(weight.shape[0], dtype=wide) if trains.bias else None,
        None if problem.sparsity is None else new_totals(hidden.device),
    )


def sparsity_report(problem: Problem, totals: Tensor | None) -> SparsityReport | None:
    """What a gradient left out; None for an exact one, and where there was none."""
    if totals is None or problem.sparsity is None:
        return None
    return report(
        problem.sparsity, totals, _most_tokens_of_a_row(problem.batch) if problem.batch.host.repeated_rows else 1.0
    )


def _most_tokens_of_a_row(batch: Batch) -> Tensor:
    """Without asking the device how many rows there are."""
    counts = batch.rows.new_zeros(batch.host.max_row + 1)
    return counts.index_add_(0, batch.rows, torch.ones_like(batch.rows)).max()


def first_order_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of these operations are made by hand and have none of their own. Said at once: without this, a
    gradient penalty would silently contribute nothing."""

    @functools.wraps(backward)
    def guarded(ctx, *upstream):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "expo_kernels: want backward without create_graph=True, since double backward is not built"
            )
        with torch.no_grad():
            return backward(ctx, *upstream)

    return guarded


class Attach(torch.autograd.Function):
    """Returns `loss`; its gradients are the ones made beforehand, times the upstream gradient."""

    @staticmethod
    def forward(ctx, loss, hidden, weight, bias, dh, dw, db, dw_is_out):
        ctx.save_for_backward(dh, None if dw_is_out else dw, db)
        ctx.dw_is_out, ctx.spent = dw_is_out, False
        ctx.like = (hidden.shape, hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss.clone()

    @staticmethod
    @first_order_only
    def backward(ctx, upstream):
        dh, dw, db = ctx.saved_tensors
        shape, hidden_dtype, weight_dtype, bias_dtype = ctx.like
        if ctx.dw_is_out:
            upstream = require_one(upstream, ctx.spent)
            ctx.spent = True
        d_hidden = None if dh is None else scaled(dh, upstream, hidden_dtype).view(shape)
        d_weight = None if dw is None else scaled(dw, upstream, weight_dtype)
        d_bias = None if db is None else scaled(db, upstream, bias_dtype)
        return None, d_hidden, d_weight, d_bias, None, None, None, None


def require_one(upstream: Tensor, spent: bool) -> Tensor:
    """dw is in the caller's buffer already, so nothing may scale or repeat it: an error, or NaN on a device."""
    if spent:
        raise RuntimeError("weight_gradient_out: want one backward(), since the buffer has taken dw once; got a second")
    if upstream.device.type == "cpu" and not torch.compiler.is_compiling() and upstream.item() != 1.0:
        raise RuntimeError(
            "weight_gradient_out: want backward() on the loss itself, since its gradient is in the buffer already; "
            f"got the upstream gradient {upstream.item()}. Pass divisor= to scale the loss."
        )
    return torch.where(upstream == 1.0, upstream, torch.nan)


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x * factor in the factor's precision, cast once. A new tensor: a second backward finds x as it was."""
    if x.dtype == dtype == factor.dtype:
        return x * factor
    out, factor = torch.empty_like(x, dtype=dtype), factor.view((1,) * x.dim())  # a scalar would not widen x
    for i in range(0, x.shape[0], _ROWS):
        torch.mul(x[i : i + _ROWS], factor, out=out[i : i + _ROWS])  # read once, written once, rounded once
    return out
