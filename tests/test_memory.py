"""The workspace is a bound: the peak of a process of its own, and every temporary of the budget, counted."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.measure import peak_bytes
from expo_kernels import Execution, sequence_logprob
from expo_kernels.fused_expo_loss import expo_loss
from expo_kernels.kernels.plain.budget import budget
from expo_kernels.layout import from_padded

V, D, T = 128256, 64, 1024


def large_step(mode: str, pairs: int):
    """2,048 scored tokens a pair, the largest usual vocabulary; for 16 pairs the logits would take 16.8 GB in fp32."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    hidden = torch.randn(2 * pairs, T, D)
    weight = torch.randn(V, D)
    batch = from_padded(torch.randint(0, V, (2 * pairs, T)))
    trained = mode == "step"
    hidden.requires_grad_(trained)
    weight.requires_grad_(trained)

    def step():
        if trained:
            expo_loss(
                hidden, weight, batch, variant="comp", lam=0.1, temperature=50.0, workspace_bytes=256 << 20
            ).loss.backward()
        else:
            with torch.no_grad():
                sequence_logprob(hidden, weight, batch, execution=Execution(workspace_bytes=256 << 20))

    return step


def allocating_step(megabytes: int):
    """A step of a known size, to see that peak_bytes sees it."""
    return lambda: torch.ones(megabytes << 18).sum()


def test_the_peak_of_a_known_step_is_measured():
    assert peak_bytes("tests.test_memory:allocating_step", megabytes=300) == pytest.approx(300 << 20, rel=0.1)


@pytest.mark.parametrize("pairs", [4, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["step", "forward"])
def test_the_workspace_bounds_the_peak(mode, pairs):
    """8,192 and 32,768 tokens at a workspace of 256 MiB: loss and gradients (which count) in under 1.0 GB, whatever the
    number of tokens; forward only in under 1 % of the logits."""
    limit = 1_000_000_000 if mode == "step" else 4 * 2 * pairs * T * V // 100
    assert peak_bytes("tests.test_memory:large_step", mode=mode, pairs=pairs) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(64, 5000), (700, 900), (33, 20011)], ids=str)
def test_the_smallest_workspace_that_is_named_is_enough(dtype, size):
    """The error of a workspace too small names one that works."""
    D, V = size
    with pytest.raises(ValueError, match="at least") as error:
        budget(D, V, dtype, 100)
    least = int(re.search(r"at least (\d+)", str(error.value)).group(1))
    assert budget(D, V, dtype, least).chunk_rows >= 1
    with pytest.raises(ValueError, match="at least"):
        budget(D, V, dtype, least // 2)
