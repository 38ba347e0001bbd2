"""A step gives back all that it takes: what malloc has handed out, before and after many steps, by glibc's account.

A leak of one small block a step is what torch's stable ABI does to every string (level in csrc/bindings.cpp)."""

from __future__ import annotations

import ctypes
import gc
import itertools
from collections.abc import Callable

import pytest
import torch

from expo_kernels import Execution, HeadOptions, Unbiased, token_stats
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.kernels.native import csrc
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective
from train.held import allocated

STEPS = 100
SMALLEST = 32  # bytes: malloc's smallest block

libc = ctypes.CDLL(None)


glibc = pytest.mark.skipif(allocated() is None, reason="malloc is not glibc's, of 2.33 or newer")


def kept_a_step(step: Callable[[], object]) -> float:
    """Bytes, the least of three stretches: a leak is in each of them, while the allocator's own caches fill once."""
    libc.malloc.restype = ctypes.c_void_p
    held = []
    for _ in range(4):
        for _ in range(STEPS):
            step()
        gc.collect()
        held.append(allocated())
    return min((after - before) / STEPS for before, after in itertools.pairwise(held))


def loss_step(backend: str, sparsity: Unbiased | None) -> Callable[[], object]:
    """Loss and gradients of three pairs, with what is optional: a bias, a soft cap."""
    torch.manual_seed(0)
    h, w, bias = (torch.randn(*size, requires_grad=True) for size in ((6, 5, 16), (90, 16), (90,)))
    batch, objective = from_padded(torch.randint(90, (6, 5))), make_objective("expo_comp", lam=0.1)
    head, execution = HeadOptions(bias=bias, softcap=5.0), Execution(backend=backend, sparsity=sparsity)

    def step():
        preference_loss(h, w, batch, objective, head=head, execution=execution).loss.backward()
        h.grad = w.grad = bias.grad = None

    return step


@glibc
def test_a_planted_leak_is_seen():
    assert kept_a_step(lambda: libc.malloc(24)) == pytest.approx(SMALLEST, abs=4)


WAYS = {"exact": None, "unbiased": Unbiased(theta=2.0**-7, seed=1)}


@glibc
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_a_step_keeps_nothing(backend, way):
    assert kept_a_step(loss_step(backend, way)) < SMALLEST / 2


@glibc
def test_scoring_keeps_nothing():
    batch = from_padded(torch.randint(90, (6, 5)))
    h, w = torch.randn(6, 5, 16), torch.randn(90, 16)
    with torch.no_grad():
        assert kept_a_step(lambda: token_stats(h, w, batch)) < SMALLEST / 2


@glibc
@pytest.mark.skipif(bool(csrc.problem()), reason=csrc.problem() or "-")
def test_no_call_of_the_library_keeps_anything():
    assert kept_a_step(csrc.ops().level) < SMALLEST / 2
