"""Bugs planted in the kernels: each must break the parity that test_parity.py demands, or that test shows nothing."""

from __future__ import annotations

import pytest
import torch
from support import Errors, fused, padded_case, rounding_floor, truth

from expo_kernels.kernels.plain import rows
from expo_kernels.kernels.plain.budget import SLICES
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
    with pytest.raises(AssertionError, match=r"against plain|not finite"):
        parity()
