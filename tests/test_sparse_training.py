"""The experiment on training with sparse gradients, at a size that says nothing but that it runs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.own_head import read_head
from experiments import sparse_training, text_lm
from experiments.sparse_training import Result, Settings
from experiments.text import shuffled, text, windows, write_source


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model of the library's text, hardly trained."""
    folder = tmp_path_factory.mktemp("lm")
    words = {"source": "library", "V": 600, "width": 64, "steps": 3, "batch": 2, "tokens": 200, "out": folder}
    text_lm.main([word for name, value in words.items() for word in (f"--{name}", str(value))])
    return folder


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
    other = shuffled(data, 0).train
    assert not torch.equal(other, data.train) and torch.equal(other.sort().values, data.train.sort().values)


def test_the_threshold_leaves_small_entries_out():
    policy = sparse_training.model(2 * 4096, 32, 0)
    ids = torch.randint(8192, (2, 8), generator=torch.Generator().manual_seed(0))
    sparse_training.thresholded(policy, ids).backward()
    touched = policy.lm_head.weight.grad.abs().sum(1) > 0
    assert 0 < int(touched.sum()) <= 14, "the labels' rows alone: a new model's softmax is under 2^-12 everywhere"


def test_what_the_head_is_given_is_written(start):
    """The model's own logits of its held-out text, as the file says them."""
    parts, model = load_file(start / "head.safetensors"), sparse_training.load(Settings((str(start),)), 1)
    assert parts["h"].shape == (200, 64) and torch.equal(parts["w"], model.lm_head.weight)
    ids = windows(text(600).held_out, 2, text_lm.LENGTH, torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)[:200]
    torch.testing.assert_close(parts["h"] @ parts["w"].T, logits)
    assert torch.equal(parts["y"], ids[:, 1:].flatten()[:200])
    assert read_head(start / "head.safetensors").w.shape == (600, 64)


def test_a_start_is_of_the_text_that_is_here(start, tmp_path):
    data = sparse_training.text_of(Settings((str(start), str(start))))
    assert data is text(600, "library") and 0.0 < data.share_rarer_than(1e-3) < data.share_rarer_than(1e-2) < 1.0
    with pytest.raises(ValueError, match="want a folder that experiments"):
        sparse_training.text_of(Settings((str(tmp_path),)))
    write_source(tmp_path, "library", data._replace(train=data.train[1:]))
    with pytest.raises(ValueError, match="was trained on other text than is installed here"):
        sparse_training.text_of(Settings((str(tmp_path),)))


@pytest.mark.slow
def test_every_task_of_one_seed(start):
    settings = Settings((str(start),), steps=3, new=3, width=32, seeds=1, held_out=1)
    made = [r for name in (*sparse_training.TASKS, "new") for r in sparse_training.job((settings, name, 0))]
    assert len(made) == 5 * 3 + 4 and all(r.loss == r.loss for r in made)
    assert all(0 < r.kept <= 1 for r in made if r.gradient not in (sparse_training.NAIVE, "the start"))
