"""Every objective through the whole pipeline: the engine against the reference, in float64, on the plain backend."""

from __future__ import annotations

import pytest
import torch
from support import fused, padded_case, truth, with_reference
from test_objectives import EVERY

from expo_kernels import Divisors
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import with_declared_weights
from expo_kernels.objectives import make_objective
from expo_kernels.reference import sequence_logprob


def case_for(objective, seed=0):
    """Empty groups, ragged prompts, and whatever the objective needs."""
    needs = objective.needs
    K = needs.roles or 3
    A, F = (3 if needs.anchor_scale is not None else 0), (3 if needs.forward_only else 0)
    case = padded_case(
        5 * K + A + F, 7, 12, 53, dtype=torch.float64, seed=seed, roles=K, anchors=A, forward_only=F, bias=True
    )
    case = with_reference(case, objective, seed)
    if (case.columns and "gap" in case.columns) or (case.columns and "gain" in case.columns):
        case = case._replace(columns={name: column.abs() + 0.1 for name, column in case.columns.items()})
    return case


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_engine_and_reference_agree(objective):
    """Loss and all gradients; where the workspace holds a few rows only, too."""
    case = case_for(objective)
    exact = truth(case, objective)
    for workspace in (1 << 14, None):
        ours = fused(case, objective, workspace)
        for name, value in exact.items():
            assert torch.allclose(ours[name], value, rtol=1e-9, atol=1e-12), name


def loss_of(case, objective, rows=slice(None), **options):
    (hidden, weight, *_), head = case.leaves(torch.float64)
    return preference_loss(
        hidden, weight, case.batch, objective, reference=case.reference, columns=case.columns, head=head, **options
    ).loss


@pytest.mark.parametrize(("objective", "divisor", "missing"), [
    (make_objective("cpo"), Divisors(groups=9.0), "tokens"),
    (make_objective("dpo", sft_weight=0.1), Divisors(tokens=9.0), "groups"),
    (make_objective("xpo"), Divisors(groups=9.0), "anchors"),
    (make_objective("sft"), Divisors(groups=9.0), "tokens"),
])  # fmt: skip
def test_every_count_must_be_named(objective, divisor, missing):
    """One count of the step beside one of the micro-batch would be a wrong loss, silently."""
    with pytest.raises(ValueError, match=f"divides by {missing} too"):
        loss_of(case_for(objective), objective, divisor=divisor)
    counts = Divisors(groups=9.0, anchors=2.0, tokens=31.0)
    assert bool(loss_of(case_for(objective), objective, divisor=counts).isfinite())


def test_xpo_pushes_samples_of_the_reference_down():
    """loss = DPO's + alpha times the mean log-prob of the anchors."""
    xpo = make_objective("xpo", beta=0.2, alpha=0.5)
    case = case_for(xpo)
    (hidden, weight, *_), head = case.leaves(torch.float64)
    seq = sequence_logprob(hidden, weight, case.batch, head)
    first = case.batch.host.grouped_sequences
    anchors = seq[first : first + 3][case.batch.lengths[first : first + 3] > 0].mean()
    rho = (seq - case.reference)[:first].view(2, -1)
    active = (case.batch.lengths[:first].view(2, -1) > 0).all(0)
    dpo = -torch.nn.functional.logsigmoid(0.2 * (rho[0] - rho[1]))[active].mean()
    assert torch.allclose(loss_of(case, xpo), dpo + 0.5 * anchors)


def test_declared_weights_are_not_applied_twice():
    """The batch that the reference pass was made with may go to the loss; that of another objective may not."""
    lddpo = make_objective("lddpo", alpha=0.3)
    case = case_for(lddpo)
    weighted = with_declared_weights(lddpo, case.batch)
    assert weighted.token_weights.unique().tolist() == pytest.approx([0.3, 1.0])
    assert with_declared_weights(lddpo, weighted) is weighted
    assert torch.equal(loss_of(case, lddpo), loss_of(case._replace(batch=weighted), lddpo))
    with pytest.raises(ValueError, match=r"has the token weights of LDDPO.*alpha=0.3"):
        with_declared_weights(make_objective("lddpo", alpha=0.4), weighted)
    assert bool((with_declared_weights(make_objective("lddpo", alpha=1.0), case.batch).token_weights == 1).all())


@pytest.mark.parametrize(("objective", "column", "bad"), [
    (make_objective("kto", reference_point="batch"), "desirable", -1.0),
    (make_objective("irpo"), "gain", -1.0),
    (make_objective("odpo"), "gap", 0.0),
    (make_objective("adpo", labels="hard"), "reward", torch.nan),
    (make_objective("kto", reference_point="column"), "reference_point", torch.inf),
])  # fmt: skip
def test_what_cannot_be_checked_beforehand_is_nan(objective, column, bad, monkeypatch):
    """On a device, and under a compiler, values are not looked at before any work."""
    for module in ("checks", "evaluation"):
        monkeypatch.setattr(f"expo_kernels.inputs.{module}.on_host", lambda values: False)
    case = case_for(objective)
    columns = {name: values.clone() for name, values in case.columns.items()}
    columns[column][1] = bad  # of the first role, group 1
    (hidden, weight, *_), head = case.leaves(torch.float64)
    out = preference_loss(hidden, weight, case.batch, objective, reference=case.reference, columns=columns, head=head)
    own = out.terms.loss.isnan()
    assert bool(own[1]) and bool(out.loss.isnan()) and int(own.sum()) == 1


def test_a_reference_point_that_is_not_finite_is_nan_everywhere(monkeypatch):
    for module in ("checks", "evaluation"):
        monkeypatch.setattr(f"expo_kernels.inputs.{module}.on_host", lambda values: False)
    objective = make_objective("kto")
    case = case_for(objective)
    reference = case.reference.clone()
    reference[-1] = -torch.inf
    out = loss_of(case._replace(reference=reference), objective)
    assert bool(out.isnan())
