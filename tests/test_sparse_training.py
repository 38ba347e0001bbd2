"""The experiment on training with sparse gradients, at a size that says nothing but that it runs."""

from __future__ import annotations

import pytest
import torch

from experiments import sparse_training
from experiments.sparse_training import QUICK, Result
from experiments.text import text, windows


def test_the_table_has_differences_within_a_seed():
    results = [
        Result("dpo", gradient, seed, 0.6 + 0.1 * seed + off, 0.7, 0.5)
        for gradient, off in (("exact", 0.0), ("unbiased", 0.01)) for seed in range(3)
    ]  # fmt: skip
    exact, unbiased = sparse_training.table(results).splitlines()[2:]
    assert "+0.0100 ± 0.0000" in unbiased and "0.1000" in exact, "the spread over seeds is not the difference's"


def test_windows_of_the_text():
    data = text(600)
    assert data.V == 600 and int(data.train.max()) < 600 and len(data.train) > 5 * len(data.held_out) > 1000
    ids = windows(data.train, 3, 10, torch.Generator().manual_seed(0))
    assert ids.shape == (3, 10)


def test_the_threshold_leaves_small_entries_out():
    policy = sparse_training.model(2 * 4096, 32, 0)
    ids = torch.randint(8192, (2, 8), generator=torch.Generator().manual_seed(0))
    sparse_training.thresholded(policy, ids).backward()
    touched = policy.lm_head.weight.grad.abs().sum(1) > 0
    assert 0 < int(touched.sum()) <= 14, "the labels' rows alone: a new model's softmax is under 2^-12 everywhere"


@pytest.mark.slow
def test_one_seed():
    made = sparse_training.one_seed(QUICK, 0)
    assert len(made) == 3 * 3 + 2 and all(0 < r.kept <= 1 for r in made)
    assert all(r.loss == r.loss for r in made)
