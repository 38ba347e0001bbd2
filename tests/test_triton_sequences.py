"""Triton's sums over sequences, in the interpreter: the pair kernel against its objective, segments against float64."""

from __future__ import annotations

import itertools

import backends
import pytest
import torch
from support import DTYPE_IDS, Errors

from benchmarks.cases import head_case
from expo_kernels import Execution
from expo_kernels.kernels.triton import ops
from expo_kernels.layout import from_packed
from expo_kernels.objectives import make_objective
from expo_kernels.types import Counts, PairForm, SequenceLogprobs

FORMS = {
    "reg": make_objective("expo_reg", lam=0.3),
    "reg-mean": make_objective("expo_reg", lam=0.7, logp_reduction="mean", temperature=0.3),
    "reg-bradley-terry": make_objective("expo_reg", lam=0.0, temperature=7.0),
    "comp": make_objective("expo_comp", lam=0.3),
    "comp-mean": make_objective("expo_comp", lam=0.1, logp_reduction="mean", temperature=2.0),
    "comp-anchors": make_objective("expo_comp", lam=0.3, samples="anchors", temperature=5.0),
}


def pair_case(weighted):
    """Pairs of ragged lengths, one empty side, d from 0 to 1e4: logp, weights, offsets, lengths [2, G], reference."""
    lengths = torch.tensor([[3, 300, 1, 0, 7, 256, 2], [3, 1, 513, 4, 7, 255, 2]])
    n = int(lengths.sum())
    logp = -torch.rand(n) * 3
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.T.flatten().cumsum(0)])
    logp[offsets[12] : offsets[13]] = -5e3  # the last pair: d is -1e4 and a little
    logp[: offsets[1]] = logp[offsets[1] : offsets[2]]  # the first: d is 0
    weights = torch.rand(n) if weighted else None
    reference_sums = -torch.rand(2, 7) * 100
    return logp, weights, offsets, lengths, reference_sums


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_the_pair_kernel_is_the_objective(name, weighted):
    objective = FORMS[name]
    logp, weights, offsets, lengths, sums = pair_case(weighted)
    refs = sums if objective.needs.reference else None
    policy, loss, coefficients, rewards, margin = ops.pair_terms(
        *objective.pair_form, logp, weights, offsets, lengths, refs
    )
    values = logp if weights is None else logp * weights
    assert torch.equal(policy, ops.segment_sum(values, offsets).view(-1, 2).T), "the same bits as segment_sum"
    wide = SequenceLogprobs(
        policy.double(), lengths.clamp(min=1).double(), None if refs is None else refs.double(), {}, Counts(1, 1, 1),
        (lengths > 0).all(0),
    )  # fmt: skip
    exact = objective(wide)
    narrow = objective(SequenceLogprobs(policy, lengths.clamp(min=1).float(), refs, {}, Counts(1, 1, 1), wide.active))
    errors, floor = Errors(), 4 * torch.finfo(torch.float32).eps * 1e4  # d is a difference of sums up to 1e4
    whole = wide.active
    assert not bool(loss[~whole].any()) and not bool(coefficients[:, ~whole].any()) and int((~whole).sum()) == 1
    loss, coefficients = (
        torch.where(whole, x, getattr(narrow, n)) for n, x in (("loss", loss), ("coefficients", coefficients))
    )
    for what, ours in (("loss", loss), ("coefficients", coefficients), ("rewards", rewards), ("margin", margin)):
        errors.add(what, ours, getattr(narrow, what), getattr(exact, what), floor)
        near = torch.isclose(ours.double(), getattr(exact, what), rtol=2e-4, atol=1e-30)
        assert bool(near.all()), f"{what}: {ours} against {getattr(exact, what)}"
    errors.check()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_pair_kernel_settles_what_is_not_finite(name, bad):
    """NaN to the loss and to both coefficients of that pair, an empty side or not, and to no other."""
    objective, (logp, _, offsets, lengths, sums) = FORMS[name], pair_case(False)
    logp[offsets[3]] = bad  # of the second pair, rejected
    logp[offsets[7]] = bad  # of the fourth, whose chosen side is empty
    marked = {1, 3}
    refs = sums if objective.needs.reference else None
    if refs is not None:
        refs[0, 5] = bad
        marked |= {5}
    _, loss, coefficients, _, _ = ops.pair_terms(*objective.pair_form, logp, None, offsets, lengths, refs)
    assert set(loss.isnan().nonzero()[:, 0].tolist()) == marked
    assert torch.equal(coefficients.isnan(), loss.isnan().expand(2, -1))


def test_the_pair_kernel_is_taken(monkeypatch):
    """preference_loss on this backend makes EXPO's terms in the kernel, and any other objective's in torch."""
    backends.use("triton", monkeypatch)
    taken = []
    kernel = ops.pair_terms
    monkeypatch.setattr(ops, "pair_terms", lambda *a: taken.append(a[0]) or kernel(*a))
    h, w, y = head_case(8, 16, 40)
    batch = from_packed(y, torch.tensor([0, 2, 4, 6, 8]))
    from expo_kernels.fused_expo_loss import preference_loss

    for objective in (FORMS["comp"], FORMS["reg"]):
        refs = -torch.rand(4) * 9 if objective.needs.reference else None
        made = preference_loss(h, w, batch, objective, reference=refs, execution=Execution(backend="triton"))
        plain = preference_loss(h, w, batch, objective, reference=refs, execution=Execution(backend="plain"))
        assert torch.allclose(made.terms.loss, plain.terms.loss, rtol=1e-5)
        assert torch.allclose(made.terms.coefficients, plain.terms.coefficients, rtol=1e-4, atol=1e-8)
    assert taken == ["expo_comp", "expo_reg"]
    preference_loss(h.double(), w.double(), batch, FORMS["comp"], execution=Execution(backend="triton"))
    assert len(taken) == 2, "float64 sums stay in float64"


def test_no_form_is_made_up():
    assert {form.pair_form.name for form in FORMS.values()} == {"expo_reg", "expo_comp"}
    assert FORMS["comp"].pair_form == PairForm("expo_comp", 0.3, 0.15, False, 1.0)
    assert FORMS["comp-anchors"].pair_form.pull == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **DTYPE_IDS)
def test_segment_sums(dtype):
    offsets = torch.tensor([0, 0, 1, 300, 300, 1000])
    values = (torch.randn(1000, dtype=torch.float64) * 100).to(dtype)
    sums = ops.segment_sum(values, offsets)
    exact = torch.stack([values[a:b].double().sum() for a, b in itertools.pairwise(offsets)])
    assert torch.equal(sums, exact.to(dtype)) or torch.allclose(sums.double(), exact, rtol=torch.finfo(dtype).eps)
    alone = ops.segment_sum(values[300:], torch.tensor([0, 700]))
    assert torch.equal(alone[0], sums[4]), "a sum's bits are its own"
