"""The benchmarks' workloads: logits of the entropy and nll they state, reproducible, of real shapes."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.cases import KINDS, MODELS, TOY, HeadCase, Setting, head_case, observed, pair_labels, shape_of
from benchmarks.providers import workload
from benchmarks.small_lm import language_case, trained


def means(case: HeadCase, softcap: float | None = None) -> tuple[float, float]:
    """-> entropy, nll, the plain way."""
    z = case.h.double() @ case.w.double().T
    logp = torch.log_softmax(z if softcap is None else softcap * torch.tanh(z / softcap), -1)
    return float(-(logp.exp() * logp).sum(-1).mean()), -float(logp.gather(1, case.y[:, None]).mean())


@pytest.mark.parametrize(("entropy", "softcap"), [(1.0, None), (2.0, None), (4.0, None), (2.0, 30.0), (4.0, 30.0)])
def test_trained_logits_have_the_entropy_they_state(entropy, softcap):
    found, nll = means(head_case(256, 64, 2000, entropy=entropy, softcap=softcap), softcap)
    assert found == pytest.approx(entropy, rel=0.25)
    assert nll == pytest.approx(entropy, rel=0.35), "labels are the model's own draws"


@pytest.mark.parametrize("nll", [1.2, 1.6, 3.0, 6.0])
def test_labels_are_mixed_to_the_nll_asked_for(nll):
    case = head_case(512, 64, 2000, entropy=2.0, nll=nll)
    entropy, found = means(case)
    assert found == pytest.approx(nll, abs=0.05) and entropy == pytest.approx(2.0, rel=0.25)
    own = head_case(512, 64, 2000, entropy=2.0)
    assert torch.equal(own.h, case.h) and torch.equal(own.w, case.w)
    assert 0 < int((own.y != case.y).sum()) < 512, "some labels are still the model's draws"


def test_an_nll_out_of_reach_is_refused():
    with pytest.raises(ValueError, match=r"want an nll between 2\.\d\d and 0\.\d\d, got 0\.1"):
        head_case(256, 64, 2000, nll=0.1)
    with pytest.raises(ValueError, match=r"want an entropy that a softcap of 0\.5 leaves possible, got 1\.0"):
        head_case(64, 64, 2000, entropy=1.0, softcap=0.5)


def test_peaked_logits_reach_both_ends():
    h, w, y = head_case(256, 64, 2000, kind="peaked")
    nll = -torch.log_softmax(h.double() @ w.double().T, -1).gather(1, y[:, None])[:, 0]
    far = torch.arange(256) % 4 == 3
    assert float(nll[~far].min()) < 1e-6 and float(nll[~far].max()) < 1
    assert float(nll[far].min()) > 45 and 110 < float(nll.max()) < 180  # the wrong labels have logits of their own


@pytest.mark.parametrize("kind", KINDS)
def test_cases_are_reproducible(kind):
    a, b = head_case(16, 32, 100, kind=kind, seed=3), head_case(16, 32, 100, kind=kind, seed=3)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_is_observed():
    h, w = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0], [0.0, 1.0]])
    seen = observed(HeadCase(h, w, torch.tensor([0, 1])))
    assert seen.logp.tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    assert seen.entropy.tolist() == pytest.approx([0.75 * math.log(4 / 3) + 0.25 * math.log(4), math.log(2)])


@pytest.mark.parametrize("masked", [0.0, 0.5, 0.8])
def test_masked_share(masked):
    labels = pair_labels(torch.zeros(64 * 200, dtype=torch.long), 32, masked=masked)
    assert float((labels == -100).float().mean()) == pytest.approx(masked, abs=0.05)


def test_no_sequence_is_all_prompt():
    labels = pair_labels(torch.zeros(32 * 3, dtype=torch.long), 16, masked=0.9)
    assert bool((labels != -100).any(1).all())


def test_a_workload_says_what_it_is():
    case = workload(Setting(model="32x500", tokens=120, pairs=3, masked=0.5, dtype="fp32"))
    assert case.hidden.shape == (6, 20, 32) and case.weight.shape == (500, 32) and case.labels.shape == (6, 20)
    logp = torch.log_softmax(case.hidden @ case.weight.T, -1)
    own = logp.gather(2, case.labels.clamp(min=0)[..., None])[..., 0] * (case.labels != -100)
    assert case.nll == pytest.approx(-float(own.sum()) / case.batch.rows.numel(), rel=1e-5)
    apart = (own.sum(1) - case.reference).abs()
    assert 0.1 < float(apart.mean()) < 10, "a reference near the policy, so that no pair's gradient vanishes"


def test_hidden_states_of_the_small_language_model():
    case = workload(Setting(model=TOY, kind="lm", tokens=512, pairs=4, dtype="fp32"))
    V = len(trained(0).language.tokenizer)
    assert case.weight.shape == (V, 64) and case.hidden.shape == (8, 64, 64)
    assert 0.5 < case.entropy < 0.7 * math.log(V) and case.nll == pytest.approx(case.entropy, rel=0.25), "it learnt"
    again = language_case(512)
    assert torch.equal(again.h, case.hidden.flatten(0, 1)) and torch.equal(again.y, case.labels.flatten())
    trained.cache_clear()
    assert torch.equal(language_case(512).h, again.h), "trained again it is the same"


def test_shapes_by_name_and_by_size():
    assert shape_of("llama3-8b") == (4096, 128256, None) and shape_of("gemma2-2b").softcap == 30.0
    assert shape_of("64x1000") == MODELS["tiny"]
    for wrong in ("llama", "64x", "x64", "0x3", "64x64x2"):
        with pytest.raises(ValueError, match="shape_of: want one of llama3-8b"):
            shape_of(wrong)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tokens": 63}, "want tokens a multiple of the 8 sequences, got 63"),
        ({"masked": 1.0}, r"want masked in \[0, 1\), got 1.0"),
        ({"dtype": "int8"}, "want dtype one of bf16"),
        ({"kind": "peaked", "entropy": 1.0}, "for the kind trained only, got them for peaked"),
        ({"kind": "flat", "nll": 1.0}, "for the kind trained only"),
        ({"kind": "lm"}, "want the model toy for the kind lm"),
        ({"model": "toy"}, "want the model toy for the kind lm"),
        ({"model": "64by1000"}, "shape_of: want one of"),
    ],
)
def test_settings_that_make_no_sense(given, said):
    with pytest.raises(ValueError, match=said):
        Setting(**given)
