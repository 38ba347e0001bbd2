"""Bugs planted in the kernels: each must break the parity that test_parity.py demands, or that test shows nothing."""

from __future__ import annotations

import backends
import pytest
import torch
import triton.language as tl
from support import Errors, fused, padded_case, rounding_floor, truth

from expo_kernels.kernels.plain import rows
from expo_kernels.kernels.plain.budget import SLICES
from expo_kernels.kernels.triton import ops as triton_ops
from expo_kernels.kernels.triton.gradient import scale
from expo_kernels.kernels.triton.head import fused as fused_kernel
from expo_kernels.kernels.triton.head import labels, merge
from expo_kernels.kernels.triton.head import rows as rows_kernel
from expo_kernels.kernels.triton.sequences import pairs
from expo_kernels.objectives import make_objective

exponentials, log_prob, label_pull, take_label = rows.exponentials, rows.log_prob, rows.label_pull, rows.take_label


def no_rescale(z, y, softcap, **asked):
    """Each slice of a row against its own maximum, summed as if it were one."""
    width = -(-z.shape[1] // SLICES)
    for v in range(0, z.shape[1], width):
        z[:, v : v + width] -= z[:, v : v + width].amax(-1, keepdim=True)
    return exponentials(z, y, softcap, **asked)


def no_mask_past_the_vocabulary(z, y, softcap, **asked):
    """The last slice's missing columns enter the sum as logits of 0."""
    sums = exponentials(z, y, softcap, **asked)
    return sums._replace(rest=sums.rest + (-z.shape[1] % 64) * torch.exp(-sums.offset))


def label_counted_twice(e, column):
    """The label's exponential stays in the sum of the rest."""
    inside = (column >= 0) & (column < e.shape[1])
    return torch.where(inside, e.gather(1, column.clamp(0, e.shape[1] - 1)[:, None])[:, 0], 0.0)


BUGS = {
    "no rescale": ("exponentials", no_rescale),
    "no mask past V": ("exponentials", no_mask_past_the_vocabulary),
    "wrong sign": ("label_pull", lambda sums, softcap: -label_pull(sums, softcap)),
    "label counted twice": ("take_label", label_counted_twice),
    "t_y left out": ("label_pull", lambda sums, softcap: label_pull(sums, None)),
    "t left out": ("cap_slope", lambda z, softcap: torch.ones_like(z)),
    "log S alone": ("log_prob", lambda sums, finite: -sums.total.log()),
}


slice_logits, logistic_pair = fused_kernel._slice_logits, pairs.logistic_pair  # before a bug takes their place


def capped_slope_left_out(z, softcap):
    return z * 0.0 + 1.0


def label_left_out(rest, label_exp, drop, label):
    """S without E_y."""
    return -tl.log(rest) - drop


def log_total_alone(rest, label_exp, drop, label):
    return -tl.log(rest + label_exp)


def swapped(d):
    right, wrong = logistic_pair(d)
    return wrong, right


def unmasked_tail(acc, v, y, V, SCALE, SOFTCAP, WIDTH):
    """Columns past the vocabulary repeat the last one, and count."""
    z, is_label = slice_logits(acc, v, y, 1 << 20, SCALE, SOFTCAP, WIDTH)
    return z, is_label


def label_one_column_off(acc, v, y, V, SCALE, SOFTCAP, WIDTH):
    return slice_logits(acc, v, y + 1, V, SCALE, SOFTCAP, WIDTH)


def crowd_forgotten(dh, crowd, label, y, w, rows):
    return scale.finish_dh(dh, torch.ones_like(crowd), label, y, w, rows)


def labels_of_the_next_token(dw, db, y, h, label):
    return labels.scatter_labels(dw, db, y.roll(1), h, label)


TRITON_BUGS = {  # route, module, name, bug
    "t left out, rows": ("triton", rows_kernel, "slope", capped_slope_left_out),
    "t left out, tiles": ("triton-fused", fused_kernel, "slope", capped_slope_left_out),
    "log S alone": ("triton", rows_kernel, "log_prob", log_total_alone),
    "S without E_y": ("triton-fused", merge, "log_prob", label_left_out),
    "s(d) for s(-d)": ("triton", pairs, "logistic_pair", swapped),
    "no mask past V": ("triton-fused", fused_kernel, "_slice_logits", unmasked_tail),
    "label one column off": ("triton-fused", fused_kernel, "_slice_logits", label_one_column_off),
    "crowd's scale forgotten": ("triton", triton_ops, "finish_dh", crowd_forgotten),
    "label of another token": ("triton", triton_ops, "scatter_labels", labels_of_the_next_token),
}


def parity():
    objective = make_objective("expo_comp", lam=0.3, temperature=20.0)
    errors = Errors()
    for seed in range(2):
        case = padded_case(6, 11, 33, 301, seed=seed, bias=True, softcap=5.0, scale=1.3)
        exact, plain, ours = truth(case, objective), truth(case, objective, torch.float32), fused(case, objective)
        for name in exact:
            errors.add(name, ours[name], plain[name], exact[name], rounding_floor(case))
    errors.check()


def test_without_a_bug():
    parity()


@pytest.mark.parametrize("bug", BUGS)
def test_caught(bug, monkeypatch):
    monkeypatch.setattr(rows, *BUGS[bug])
    monkeypatch.setenv("EXPO_KERNELS_BACKEND", "plain")
    with pytest.raises(AssertionError, match=r"against plain|not finite"):
        parity()


@pytest.mark.parametrize("route", ["triton", "triton-fused"])
def test_triton_without_a_bug(route, monkeypatch):
    monkeypatch.setenv("EXPO_KERNELS_BACKEND", backends.use(route, monkeypatch))
    parity()


@pytest.mark.parametrize("bug", TRITON_BUGS)
def test_caught_in_triton(bug, monkeypatch):
    route, module, name, wrong = TRITON_BUGS[bug]
    monkeypatch.setenv("EXPO_KERNELS_BACKEND", backends.use(route, monkeypatch))
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError, match=r"against plain|not finite"):
        parity()
