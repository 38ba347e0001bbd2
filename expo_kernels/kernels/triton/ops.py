"""The operations of the Triton backend as torch.library custom ops, so that a compiler sees one node for each."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.library import custom_op

from expo_kernels.kernels.contract import Head, accumulator
from expo_kernels.kernels.custom_ops import register_shapes
from expo_kernels.kernels.factors import factors
from expo_kernels.kernels.sparse.crowd import Rows
from expo_kernels.kernels.sparse.crowd import crowd as sparse_crowd
from expo_kernels.kernels.sparse.rules import rule_of
from expo_kernels.kernels.triton.budget import budget
from expo_kernels.kernels.triton.gradient.columns import add_columns
from expo_kernels.kernels.triton.gradient.scale import finish_dh, fp16_lift, scaled_rows
from expo_kernels.kernels.triton.gradient.sparse import Kernels
from expo_kernels.kernels.triton.head.labels import scatter_labels
from expo_kernels.kernels.triton.head.scoring import score_rows
from expo_kernels.kernels.triton.product import product
from expo_kernels.kernels.triton.sequences.pairs import new_pair_results
from expo_kernels.kernels.triton.sequences.pairs import pair_terms as pair_kernel
from expo_kernels.kernels.triton.sequences.segments import segment_sum as segment_kernel
from expo_kernels.types import PairForm


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """A kernel runs on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@custom_op("expo_kernels::triton_logprob", mutates_args=())
def logprob(
    h: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None, scale: float,
    workspace_bytes: int, stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """h [n, D], y [n], w [V, D] -> logp [n], entropy, is_argmax ([n], or empty without stats)."""
    head = Head(_rows(w), _dense(bias), softcap, scale)
    with _on(h.device):
        out = score_rows(_rows(h), y.contiguous(), head, None, workspace_bytes, stats)
    return out.logp, out.entropy, out.is_argmax


@custom_op("expo_kernels::triton_score", mutates_args=("stored",))
def score(
    h: Tensor, y: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None, scale: float,
    stored: Tensor, workspace_bytes: int, stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Fills stored [n, V] with E' in the input's dtype, 0 at the label; -> inverse [n], pull [n], what logprob returns.

    d logp / da_v = -inverse stored_v  (v != y)        d logp / da_y = pull
    """
    head = Head(_rows(w), _dense(bias), softcap, scale)
    with _on(h.device):
        out = score_rows(_rows(h), y.contiguous(), head, stored, workspace_bytes, stats)
    return out.inverse, out.pull, out.logp, out.entropy, out.is_argmax


@custom_op("expo_kernels::triton_backprop", mutates_args=("dw", "db"))
def backprop(
    stored: Tensor, inverse: Tensor, pull: Tensor, y: Tensor, c: Tensor, h: Tensor, w: Tensor, scale: float,
    dw: Tensor | None, db: Tensor | None, rows: Tensor | None, need_h: bool, workspace_bytes: int,
) -> Tensor:  # fmt: skip
    """da = c (pull onehot(y) - inverse stored), row by row, and dh = scale da w, dw += scale da^T h, db += scale da:
    two products for the stored part, a gather and an ordered scatter for the label's."""
    h, w, y, dtype = _rows(h), _rows(w), y.contiguous(), accumulator(h.dtype)
    made = factors(inverse, pull, y, c, h, scale, None)
    dh = h.new_empty((h.shape[0] if rows is None else rows.shape[0]) if need_h else 0, w.shape[1], dtype=dtype)
    own = dh if need_h else None
    with _on(h.device):
        _crowd(stored, made.crowd, h, w, dw, db, rows, own, workspace_bytes)
        _finish(made.crowd, made.label, y, h, w, dw, db, rows, own)
    return dh


@custom_op("expo_kernels::triton_sparse_backprop", mutates_args=("dw", "db"))
def sparse_backprop(
    stored: Tensor, inverse: Tensor, pull: Tensor, y: Tensor, c: Tensor, h: Tensor, w: Tensor, scale: float,
    dw: Tensor | None, db: Tensor | None, rows: Tensor | None, need_h: bool, workspace_bytes: int,
    rule: str, amount: float, seed: int, first: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """backprop with the products of the columns that a rule keeps alone; -> dh, and the totals of its report."""
    h, w = _rows(h), _rows(w)
    whole = factors(inverse, pull, y.contiguous(), c, h, scale, None)
    made = whole if rows is None else whole.at(rows)
    dh = made.new_dh(w.shape[1], need_h)
    own = dh if need_h else None

    def exact(at: Tensor | None, part: Tensor | None) -> None:
        which = rows if at is None else at if rows is None else rows[at]
        _crowd(stored, whole.crowd, h, w, dw, db, which, part, workspace_bytes)

    with _on(h.device):
        kept = Rows.of(stored, inverse, made, rows)
        totals = sparse_crowd(rule_of(rule, amount, seed), Kernels(), exact, kept, w, dw, db, own, first)
        _finish(made.crowd, made.label, made.y, made.h, w, dw, db, None, own)
    return dh, totals


def _crowd(
    stored: Tensor, crowd: Tensor, h: Tensor, w: Tensor, dw: Tensor | None, db: Tensor | None, rows: Tensor | None,
    dh: Tensor | None, workspace_bytes: int,
) -> None:  # fmt: skip
    """The stored part: dh [k, D] = E' w without the factor [n] of each row, dw += E'^T (crowd h), db += E'^T crowd."""
    V, D = w.shape
    sizes = budget(D, V, h.dtype, workspace_bytes)
    strip = V if rows is None else sizes.strip
    lift = fp16_lift(h, crowd) if dw is not None and h.dtype == torch.float16 else None
    scaled_h = h if dw is None else scaled_rows(h, crowd if lift is None else crowd * lift, rows)
    for v in range(0, V, strip):
        columns = slice(v, v + strip)
        e = stored[:, columns] if rows is None else stored[:, columns].index_select(0, rows)
        if dh is not None:
            product(e, w[columns], dh, add=v > 0)
        if dw is not None:
            _add_to_dw(dw[columns], e, scaled_h, lift, sizes.lifted)
        if db is not None:
            add_columns(db[columns], e, crowd if rows is None else crowd[rows])


def _finish(
    crowd: Tensor, label: Tensor, y: Tensor, h: Tensor, w: Tensor, dw: Tensor | None, db: Tensor | None,
    rows: Tensor | None, dh: Tensor | None,
) -> None:  # fmt: skip
    """The factor of each row, which the products left out of dh, and the labels' part."""
    if dh is not None:
        finish_dh(dh, crowd, label, y, w, rows)
    if rows is not None:
        y, h, label = y[rows], h[rows], label[rows]
    scatter_labels(dw, db, y, h, label)


def _add_to_dw(dw: Tensor, e: Tensor, scaled_h: Tensor, lift: Tensor | None, strip: int) -> None:
    """dw [v, D] += E'^T scaled h; what was lifted into fp16's range comes down again in fp32, a strip at a time."""
    if lift is None:
        product(e.T, scaled_h, dw, add=True)
        return
    for v in range(0, dw.shape[0], strip):
        part = torch.empty_like(dw[v : v + strip])
        product(e[:, v : v + strip].T, scaled_h, part, add=False)
        dw[v : v + strip].addcmul_(part, 1.0 / lift)


@custom_op("expo_kernels::triton_segment_sum", mutates_args=())
def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """values [n], offsets [S+1] -> [S]."""
    with _on(values.device):
        return segment_kernel(values.contiguous(), offsets.contiguous())


@custom_op("expo_kernels::triton_pair_terms", mutates_args=())
def pair_terms(
    name: str, lam: float, pull: float, mean: bool, temperature: float,
    logp: Tensor, weights: Tensor | None, offsets: Tensor, lengths: Tensor, reference: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> policy [2, G], loss [G], coefficients [2, G], rewards [2, G], margin [G]."""
    form = PairForm(name, lam, pull, mean, temperature)
    with _on(logp.device):
        made = pair_kernel(form, logp.contiguous(), _dense(weights), offsets.contiguous(), lengths, reference)
    return made.policy, made.loss, made.coefficients, made.rewards, made.margin


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _rows(x: Tensor) -> Tensor:
    """What the kernels read: contiguous rows."""
    return x if x.stride(1) == 1 else x.contiguous()


register_shapes(logprob, score, backprop, sparse_backprop, segment_sum)


@pair_terms.register_fake
def _(name, lam, pull, mean, temperature, logp, weights, offsets, lengths, reference):
    return tuple(new_pair_results(logp, lengths.shape[1]))
