"""The workspace is a bound: the peak of a process of its own, and every temporary of the budget, counted."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.measure import peak_bytes
from expo_kernels import Certified, Execution, Unbiased, sequence_logprob
from expo_kernels.fused_expo_loss import expo_loss, preference_loss
from expo_kernels.kernels.plain.budget import budget
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective

V, D, T = 128256, 64, 1024
RULES = {
    "exact": None, "unbiased": Unbiased(theta=2.0**-7, seed=1), "row": Certified(tau=0.05),
    "block": Certified(tau=0.02, budget="block"),
}  # fmt: skip


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


def sparse_step(rule: str):
    """Two thousand tokens of a peaked softmax, by a rule of RULES."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    hidden, weight = torch.randn(2, T, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    batch = from_padded(torch.randint(0, V, (2, T)))
    execution = Execution(workspace_bytes=256 << 20, sparsity=RULES[rule])
    objective = make_objective("expo_comp", lam=0.1, temperature=50.0)
    return lambda: preference_loss(hidden, weight, batch, objective, execution=execution).loss.backward()


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


@pytest.mark.slow
def test_a_sparse_gradient_takes_a_few_numbers_a_column_beside_the_workspace():
    exact, *others = (peak_bytes("tests.test_memory:sparse_step", rule=rule) for rule in RULES)
    assert all(peak - exact < 150 * V for peak in others), [(peak - exact) / V for peak in others]


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
