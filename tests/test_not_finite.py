"""Empty groups, fully masked batches, and values that are not finite: in their own group, and never hidden."""

from __future__ import annotations

import pytest
import torch
from backends import BACKENDS
from small_objectives import Coupled
from support import SMALL, padded_case, truth

from expo_kernels import (
    Execution,
    HeadOptions,
    SequenceLogprobs,
    reference,
    sequence_logprob,
    token_logprob,
    token_stats,
)
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import from_packed, from_padded
from expo_kernels.objectives import make_objective
from expo_kernels.types import Counts

COMP = make_objective("expo_comp", lam=0.3, logp_reduction="mean")
EXECUTION = Execution(workspace_bytes=SMALL)

pytestmark = pytest.mark.usefixtures("backend")


def pytest_generate_tests(metafunc):
    metafunc.parametrize("backend", BACKENDS, indirect=True)


def loss_of(case, objective, hidden, weight, **head):
    return preference_loss(
        hidden, weight, case.batch, objective, columns=case.columns, head=HeadOptions(**head), execution=EXECUTION
    )


def with_masked(case, *sequences):
    labels = torch.full(case.hidden.shape[:2], -100)
    labels.view(-1)[case.batch.rows] = case.batch.labels
    labels[list(sequences)] = -100
    return case._replace(batch=from_padded(labels))


@pytest.mark.parametrize("side", [1, 4])
def test_a_group_with_an_empty_side_is_inactive(side):
    case = with_masked(padded_case(6, 9, 20, 101, dtype=torch.float64), side)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    out = loss_of(case, COMP, hidden, weight)
    out.loss.backward()
    assert out.empty == 1
    assert float(out.terms.loss[1]) == 0.0 and bool((out.terms.coefficients[[1, 4]] == 0).all())
    assert bool((hidden.grad[[1, 4]] == 0).all()) and bool((hidden.grad[[0, 2, 3, 5]] != 0).any())
    assert float(out.loss.detach()) == pytest.approx(float(out.terms.loss[[0, 2]].mean()))
    exact = truth(case, COMP)
    assert torch.allclose(hidden.grad, exact["d_hidden"]) and torch.allclose(weight.grad, exact["d_weight"])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_fully_masked_batch_has_loss_zero_and_a_connected_graph(frozen):
    hidden = torch.randn(4, 5, 8, requires_grad=True)
    weight = torch.randn(30, 8, requires_grad=not frozen)
    batch = from_padded(torch.full((4, 5), -100))
    out = preference_loss(hidden, weight, batch, COMP)
    out.loss.backward()
    assert float(out.loss.detach()) == 0.0 and out.empty == 2
    assert bool((hidden.grad == 0).all()) and (frozen or bool((weight.grad == 0).all()))
    assert bool((out.seq_logps == 0).all())
    hidden.grad = None
    sequence_logprob(hidden, weight, batch).sum().backward()
    assert bool((hidden.grad == 0).all())
    assert token_logprob(hidden, weight, batch).shape == (0,)
    assert token_stats(hidden, weight, batch).entropy.shape == (0,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(
    "objective", [COMP, make_objective("slic", delta=-1e9)], ids=["comp", "hinge-with-zero-coefficients"]
)
def test_a_hidden_value_that_is_not_finite_poisons_its_own_group(value, softcap, objective):
    case = padded_case(6, 9, 20, 101, dtype=torch.float32)
    hidden, weight = case.hidden.clone(), case.weight.clone().requires_grad_()
    row = int(case.batch.rows[case.batch.segments == 4][0])
    hidden.view(-1, 20)[row, 3] = value
    hidden.requires_grad_()
    out = loss_of(case, objective, hidden, weight, softcap=softcap)
    out.loss.backward()
    assert out.loss.isnan() and bool(weight.grad.isnan().all())
    assert out.terms.loss.isnan().tolist() == [False, True, False]
    assert bool(out.terms.coefficients[[1, 4]].isnan().all()) and out.seq_logps[4].isnan()
    flat, own = hidden.grad.view(-1, 20), torch.isin(case.batch.segments, torch.tensor([1, 4]))
    assert bool(flat[case.batch.rows[own]].isnan().all())
    assert bool(flat[case.batch.rows[~own]].isfinite().all())


def test_an_unscored_value_that_is_not_finite_does_not_matter():
    case = padded_case(6, 9, 20, 101, dtype=torch.float32)
    hidden = case.hidden.clone()
    unscored = torch.ones(54, dtype=torch.bool)
    unscored[case.batch.rows] = False
    hidden.view(-1, 20)[unscored] = torch.nan
    hidden.requires_grad_()
    weight = case.weight.clone().requires_grad_()
    out = loss_of(case, COMP, hidden, weight)
    out.loss.backward()
    assert out.loss.isfinite() and bool(weight.grad.isfinite().all()) and bool(hidden.grad.isfinite().all())


def test_a_nan_in_an_anchor_poisons_the_anchor_only():
    objective = make_objective("expo_comp", lam=0.3, samples="anchors")
    case = padded_case(8, 9, 20, 101, dtype=torch.float32, anchors=2)
    hidden, weight = case.hidden.clone(), case.weight.clone().requires_grad_()
    hidden.view(-1, 20)[int(case.batch.rows[case.batch.segments == 7][0]), 0] = torch.nan
    hidden.requires_grad_()
    out = loss_of(case, objective, hidden, weight)
    out.loss.backward()
    assert out.loss.isnan() and bool(out.terms.loss.isfinite().all())
    flat, own = hidden.grad.view(-1, 20), case.batch.segments == 7
    assert bool(flat[case.batch.rows[own]].isnan().all()) and bool(flat[case.batch.rows[~own]].isfinite().all())


def test_a_nan_reaches_every_group_of_a_coupled_objective():
    case = padded_case(5, 9, 20, 101, dtype=torch.float32, roles=1)._replace(columns={"sign": torch.ones(5)})
    hidden, weight = case.hidden.clone(), case.weight.clone().requires_grad_()
    hidden.view(-1, 20)[int(case.batch.rows[0])] = torch.nan
    hidden.requires_grad_()
    out = loss_of(case, Coupled(), hidden, weight)
    out.loss.backward()
    assert out.loss.isnan() and bool(out.terms.loss.isnan().all())


@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_the_generic_operation_does_not_hide_a_nan_behind_a_zero(coefficient):
    case = padded_case(4, 9, 20, 101, dtype=torch.float32)
    for frozen in (True, False):
        hidden = case.hidden.clone()
        hidden.view(-1, 20)[int(case.batch.rows[0])] = torch.inf
        hidden.requires_grad_()
        weight = case.weight.clone().requires_grad_(not frozen)
        logp = token_logprob(hidden, weight, case.batch, head=HeadOptions(softcap=3.0), execution=EXECUTION)
        assert logp.isnan().tolist() == [True] + [False] * (len(logp) - 1)
        (logp * coefficient).sum().backward()
        flat = hidden.grad.view(-1, 20)
        assert bool(flat[case.batch.rows[0]].isnan().all()) and bool(flat[case.batch.rows[1:]].isfinite().all())


def test_a_masked_column_is_not_an_error():
    """A bias of -inf takes a column out of the vocabulary; as a label it makes the log-prob NaN, not -inf."""
    hidden, weight = torch.randn(2, 4, 8), torch.randn(30, 8)
    bias = torch.zeros(30)
    bias[20:] = -torch.inf
    labels = torch.randint(0, 20, (2, 4))
    seq = sequence_logprob(hidden, weight, from_padded(labels), head=HeadOptions(bias=bias))
    want = torch.log_softmax(hidden @ weight[:20].T, -1).gather(2, labels[..., None]).sum((1, 2))
    assert torch.allclose(seq, want, rtol=1e-5)
    labels[0, 0] = 25
    seq = sequence_logprob(hidden, weight, from_padded(labels), head=HeadOptions(bias=bias))
    assert seq.isnan().tolist() == [True, False]


def test_large_differences():
    """|d| to 1e4: losses and coefficients finite and right, where log1p(exp(-d)) would overflow."""
    d = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], dtype=torch.float32)
    policy = torch.stack([d, torch.zeros_like(d)])
    ones = torch.ones_like(policy)
    seen = SequenceLogprobs(policy, ones, 0 * ones, {}, Counts(1, 1, 1), ones[0].bool())
    comp = make_objective("expo_comp", lam=1e-6)(seen)
    assert bool(comp.loss.isfinite().all()) and bool(comp.coefficients.isfinite().all())
    assert float(comp.loss[0]) == pytest.approx(1e4, rel=1e-5) and float(comp.coefficients[0, 0]) == pytest.approx(-1)
    reg = make_objective("expo_reg", lam=0.5)(seen)
    assert bool(reg.loss.isfinite().all()) and bool(reg.coefficients.isfinite().all())
    # (1 - lam / 2)^2 at d -> -inf, (lam / 2)^2 at d -> inf; the gradient at d = -20 is 2 (1 - lam / 2) s(-20)
    assert float(reg.loss[0]) == pytest.approx(0.75**2) and float(reg.loss[-1]) == pytest.approx(0.25**2)
    assert float(reg.coefficients[0, 2]) == pytest.approx(-2 * 0.75 * 2.0611536e-09, rel=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_a_nan_anchor_that_shares_a_row_with_a_clean_one(first):
    """Both anchors have a token behind row 3: its gradient is NaN, whichever comes last."""
    rows = torch.tensor([0, 1, 0, 2, 3, 4, 5, 3, 6, 7])
    batch = from_packed(torch.randint(0, 30, (10,)), torch.tensor([0, 2, 4, 7, 10]), anchors=2, rows=rows)
    hidden = torch.randn(8, 8)
    hidden[5 if first else 7] = torch.nan
    hidden.requires_grad_()
    objective = make_objective("expo_comp", lam=0.3, samples="anchors")
    preference_loss(hidden, torch.randn(30, 8), batch, objective).loss.backward()
    assert hidden.grad.isnan().any(1).nonzero()[:, 0].tolist() == ([3, 4, 5] if first else [3, 6, 7])


@pytest.mark.parametrize("skip", [True, False])
def test_an_anchor_of_weight_zero_does_not_hide_a_nan(skip):
    batch = from_packed(
        torch.randint(0, 30, (6,)), torch.tensor([0, 2, 4, 6]), anchors=1, anchor_weights=torch.zeros(1)
    )
    hidden, weight = torch.randn(6, 8), torch.randn(30, 8, requires_grad=True)
    hidden[5] = torch.nan
    hidden.requires_grad_()
    objective = make_objective("expo_comp", lam=0.3, samples="anchors")
    out = preference_loss(hidden, weight, batch, objective, execution=Execution(skip_inactive=skip))
    out.loss.backward()
    assert out.loss.isnan() and bool(weight.grad.isnan().all()) and bool(hidden.grad[4:].isnan().all())


def test_an_empty_sequence_of_a_coupled_objective():
    """It sees which groups are active, and so its gradient is the gradient of its loss."""
    labels = torch.randint(0, 30, (5, 4))
    labels[1] = -100
    batch = from_padded(labels, roles=1)
    hidden = torch.randn(5, 4, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    columns = {"sign": torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])}
    made = torch.autograd.grad(
        preference_loss(hidden, weight, batch, Coupled(), columns=columns).loss, [hidden, weight]
    )
    exact = reference.preference_loss(hidden, weight, batch, Coupled(), columns=columns)
    for a, b in zip(made, torch.autograd.grad(exact, [hidden, weight]), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


def test_a_bad_forward_only_sequence_poisons_what_looks_at_it():
    """KTO's reference point is in every group's loss; an objective that does not look at it is not touched."""
    case = padded_case(6, 9, 20, 101, roles=1, forward_only=2)
    hidden, weight = case.hidden.clone(), case.weight.clone().requires_grad_()
    hidden.view(-1, 20)[int(case.batch.rows[case.batch.segments == 5][0])] = torch.nan
    hidden.requires_grad_()
    columns = {"desirable": torch.tensor([1.0, 0.0, 1.0, 0.0])}
    kto = preference_loss(
        hidden, weight, case.batch, make_objective("kto"), reference=torch.full((6,), -9.0), columns=columns
    )
    assert bool(kto.terms.loss.isnan().all()) and bool(kto.terms.coefficients[:4].isnan().all())
    sft = preference_loss(hidden, weight, case.batch, make_objective("sft"))
    assert bool(sft.terms.loss.isfinite().all()) and sft.seq_logps[5].isnan()
