"""The generic operations: gradcheck, which gradients are made, how often products run, second and double backward."""

from __future__ import annotations

import pytest
import torch
from support import SMALL, padded_case

from expo_kernels import Execution, HeadOptions, reference, sequence_logprob, token_logprob, token_stats
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.kernels.custom_ops import CustomOps
from expo_kernels.kernels.plain.budget import chunk_rows
from expo_kernels.kernels.resolve import resolve
from expo_kernels.layout import from_packed, from_padded
from expo_kernels.objectives import make_objective

EXECUTION = Execution(workspace_bytes=SMALL)


def doubles(*, bias=True, **layout):
    case = padded_case(4, 5, 6, 17, dtype=torch.float64, bias=bias, **layout)
    return case, [x.clone().requires_grad_() for x in (case.hidden, case.weight, case.bias)]


@pytest.mark.parametrize("token_weights", [None, "mean"])
def test_gradcheck(token_weights):
    case, leaves = doubles(token_weights=token_weights)

    def function(hidden, weight, bias):
        head = HeadOptions(bias=bias, softcap=3.0, logit_scale=1.2)
        return sequence_logprob(hidden, weight, case.batch, head=head, execution=Execution(workspace_bytes=1 << 14))

    assert torch.autograd.gradcheck(function, leaves)


def test_gradcheck_with_repeated_rows_and_a_frozen_head():
    hidden = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 6, dtype=torch.float64)
    rows = torch.tensor([0, 0, 1, 4, 0, 2])
    batch = from_packed(torch.randint(0, 17, (6,)), torch.tensor([0, 3, 6]), roles=1, rows=rows)
    assert torch.autograd.gradcheck(lambda h: token_logprob(h, weight, batch), [hidden])


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("operation", ["loss", "sequences"])
def test_only_the_gradients_that_are_wanted(wanted, operation):
    case, _ = doubles()
    leaves = [
        x.clone().requires_grad_(bool(want))
        for x, want in zip((case.hidden, case.weight, case.bias), wanted, strict=True)
    ]
    twins = [x.detach().clone().requires_grad_(x.requires_grad) for x in leaves]
    objective = make_objective("expo_comp", lam=0.3)
    head, twin_head = HeadOptions(bias=leaves[2]), HeadOptions(bias=twins[2])
    if operation == "loss":
        preference_loss(*leaves[:2], case.batch, objective, head=head, execution=EXECUTION).loss.backward()
    else:
        seq = sequence_logprob(*leaves[:2], case.batch, head=head, execution=EXECUTION)
        reference.objective_loss(seq, case.batch, objective).backward()
    reference.preference_loss(*twins[:2], case.batch, objective, head=twin_head).backward()
    for leaf, twin, want in zip(leaves, twins, wanted, strict=True):
        assert (leaf.grad is not None) == bool(want)
        assert not want or torch.allclose(leaf.grad, twin.grad, rtol=1e-10, atol=1e-12)


def test_nothing_wants_a_gradient():
    case, leaves = doubles()
    with torch.no_grad():
        out = preference_loss(*leaves[:2], case.batch, make_objective("expo_comp", lam=0.3), execution=EXECUTION)
    assert not out.loss.requires_grad and out.loss.isfinite()
    frozen = [x.detach() for x in leaves]
    assert not sequence_logprob(*frozen[:2], case.batch).requires_grad


def operations():
    """The module of the backend that the calls here get."""
    return resolve("auto", torch.device("cpu")).backend.ops


class Counter:
    """Rows that pass through each operation of the backend, in units of N."""

    def __init__(self, monkeypatch, N):
        self.N, self.rows = N, {"logprob": 0, "score": 0, "backprop": 0, "dw": 0}
        ops = operations()
        for name in ("logprob", "score", "backprop"):
            monkeypatch.setattr(ops, name, self._counting(name, getattr(ops, name)))

    def _counting(self, name, function):
        def counted(*args):
            n = args[5].shape[0] if name == "backprop" else args[0].shape[0]
            self.rows[name] += n
            if name == "backprop" and args[8] is not None:
                self.rows["dw"] += n
            return function(*args)

        return counted

    def products(self):
        """Products of 2 N D V flops, if every row of backprop makes dh."""
        return sum(self.rows.values()) / self.N


def test_counted_products(monkeypatch):
    """3 for the loss, 2 with a frozen head, 1 forward only; 4 less what is kept for the generic trained head."""
    case = padded_case(8, 30, 33, 301, seed=1)
    N, objective = case.batch.rows.shape[0], make_objective("expo_comp", lam=0.3)
    workspace = Execution(workspace_bytes=SMALL)
    longest = max(sum(case.batch.host.lengths[i::4]) for i in range(4))
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()

    def count(function):
        with monkeypatch.context() as patch:
            counter = Counter(patch, N)
            function()
        return counter.products()

    def loss(h, w, execution):
        return preference_loss(h, w, case.batch, objective, execution=execution).loss.backward()

    assert longest <= chunk_rows(33, 301, torch.float32, SMALL) < N, "the case must need several chunks of whole pairs"
    assert count(lambda: loss(hidden, weight, workspace)) == 3.0
    assert count(lambda: loss(hidden, case.weight, workspace)) == 2.0
    with torch.no_grad():
        assert count(lambda: preference_loss(hidden, weight, case.batch, objective, execution=workspace)) == 1.0
    assert count(lambda: token_stats(hidden, weight, case.batch, execution=workspace)) == 1.0
    assert count(lambda: sequence_logprob(hidden, case.weight, case.batch, execution=workspace).sum().backward()) == 2.0
    kept = chunk_rows(33, 301, torch.float32, SMALL) // 2 / N  # the other half is for what is scored again
    trained = count(lambda: sequence_logprob(hidden, weight, case.batch, execution=workspace).sum().backward())
    assert trained == pytest.approx(4.0 - kept)
    tight = 16 * 1024  # a pair is larger than the workspace: its last part is kept, the others are scored again
    R = chunk_rows(33, 301, torch.float32, tight)
    sizes = [sum(case.batch.host.lengths[i::4]) for i in range(4)]
    again = sum(max(size - R, 0) for size in sizes) / N
    assert again > 0
    assert count(lambda: loss(hidden, weight, Execution(workspace_bytes=tight))) == pytest.approx(3.0 + again)


def test_inactive_groups_are_skipped(monkeypatch):
    """A hinge satisfied by half the pairs: 1 + 2 f products."""
    case = padded_case(8, 30, 33, 301, seed=1)
    with torch.no_grad():
        seq = sequence_logprob(case.hidden, case.weight, case.batch)
    margin = seq[:4] - seq[4:]
    objective = make_objective("slic", delta=float(margin.median()) + 1e-3)
    active = margin < objective.delta
    tokens = torch.tensor(case.batch.host.lengths).view(2, 4).sum(0)
    f = float(tokens[active].sum()) / case.batch.rows.shape[0]
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    counter = Counter(monkeypatch, case.batch.rows.shape[0])
    rows = []
    ops = operations()
    backprop = ops.backprop
    monkeypatch.setattr(
        ops, "backprop", lambda *a: rows.append(a[5].shape[0] if a[10] is None else a[10].shape[0]) or backprop(*a)
    )
    preference_loss(hidden, weight, case.batch, objective, execution=EXECUTION).loss.backward()
    assert 0 < f < 1 and counter.rows["score"] == case.batch.rows.shape[0]
    assert sum(rows) == round(f * case.batch.rows.shape[0])
    skipped = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    whole = Execution(workspace_bytes=SMALL, skip_inactive=False)
    preference_loss(hidden, weight, case.batch, objective, execution=whole).loss.backward()
    for a, b in zip(skipped, (hidden.grad, weight.grad), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("operation", ["loss", "sequences", "frozen"])
def test_second_backward_works_and_double_backward_raises(operation):
    case, (hidden, weight, _) = doubles()
    if operation == "frozen":
        weight = weight.detach()
    if operation == "loss":
        value = preference_loss(hidden, weight, case.batch, make_objective("expo_comp", lam=0.3)).loss
    else:
        value = sequence_logprob(hidden, weight, case.batch).sum()
    (first,) = torch.autograd.grad(value, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(3 * value, hidden, retain_graph=True)
    assert torch.allclose(3 * first, second, rtol=1e-12)
    (third,) = torch.autograd.grad(value, hidden, retain_graph=True)
    assert torch.equal(first, third)
    with pytest.raises(RuntimeError, match="double backward is not built"):
        torch.autograd.grad(value, hidden, create_graph=True)


@pytest.mark.parametrize("operation", ["loss", "sequences"])
def test_weight_gradient_into_a_buffer(operation):
    case, (hidden, weight, _) = doubles()
    out = torch.ones(weight.shape, dtype=torch.float64)
    execution = Execution(workspace_bytes=1 << 16, weight_gradient_out=out)
    objective = make_objective("expo_comp", lam=0.3)
    if operation == "loss":
        preference_loss(hidden, weight, case.batch, objective, execution=execution).loss.backward()
    else:
        seq = sequence_logprob(hidden, weight, case.batch, execution=execution)
        reference.objective_loss(seq, case.batch, objective).backward()
    twin, twin_weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    reference.preference_loss(twin, twin_weight, case.batch, objective).backward()
    assert weight.grad is None
    assert torch.allclose(out - 1, twin_weight.grad, rtol=1e-10, atol=1e-12)
    assert torch.allclose(hidden.grad, twin.grad, rtol=1e-10, atol=1e-12)


def test_a_buffer_refuses_a_scaled_loss():
    case, (hidden, weight, _) = doubles()
    execution = Execution(weight_gradient_out=torch.zeros_like(weight).detach())
    out = preference_loss(hidden, weight, case.batch, make_objective("expo_comp", lam=0.3), execution=execution)
    with pytest.raises(RuntimeError, match=r"weight_gradient_out.*got the upstream gradient 0.5"):
        (0.5 * out.loss).backward()


def test_a_buffer_refuses_a_second_backward():
    case, (hidden, weight, _) = doubles()
    execution = Execution(weight_gradient_out=torch.zeros_like(weight).detach())
    out = preference_loss(hidden, weight, case.batch, make_objective("expo_comp", lam=0.3), execution=execution)
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"weight_gradient_out.*got a second"):
        out.loss.backward()


def test_labels_alone_are_any_number_of_sequences():
    hidden, weight, labels = torch.randn(5, 3, 8), torch.randn(9, 8), torch.randint(0, 9, (5, 3))
    assert sequence_logprob(hidden, weight, labels).shape == (5,) and token_logprob(hidden, weight, labels).shape == (
        15,
    )


def test_the_generic_backward_stays_inside_the_workspace(monkeypatch):
    """What is kept from forward and what is scored again share the budget."""
    case = padded_case(8, 40, 33, 301)
    reserved = []
    new = CustomOps.new_workspace
    monkeypatch.setattr(
        CustomOps, "new_workspace", lambda self, rows, *more: reserved.append(rows) or new(self, rows, *more)
    )
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    R = chunk_rows(33, 301, torch.float32, SMALL)
    assert case.batch.rows.shape[0] > R
    sequence_logprob(hidden, weight, case.batch, execution=EXECUTION).sum().backward()
    assert len(reserved) == 2 and sum(reserved) <= R


@pytest.mark.parametrize("layout", ["2-D", "3-D", "4-D"])
def test_strided_hidden_states_are_read_where_they_lie(layout):
    hidden = {
        "2-D": torch.randn(40, 8)[::2],
        "3-D": torch.randn(4, 6, 8)[:, :-1],
        "4-D": torch.randn(2, 2, 6, 8)[:, :, :-1],
    }
    x, weight = hidden[layout], torch.randn(17, 8)
    assert not x.is_contiguous()
    batch = from_packed(torch.randint(0, 17, (20,)), torch.tensor([0, 10, 20]))
    assert torch.equal(sequence_logprob(x, weight, batch), sequence_logprob(x.contiguous(), weight, batch))


def test_tied_embedding_adds():
    """The head's weight is the embedding too: the gradients add up."""
    V, D = 17, 6
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    labels = torch.randint(0, V, (4, 5))
    objective = make_objective("expo_comp", lam=0.3)
    batch = from_padded(labels)
    preference_loss(weight[labels.roll(1)], weight, batch, objective).loss.backward()
    reference.preference_loss(twin[labels.roll(1)], twin, batch, objective).backward()
    assert torch.allclose(weight.grad, twin.grad, rtol=1e-10)


def test_sliced_hidden_states_are_read_in_place():
    """hidden[:, :-1], the usual shift, is not contiguous."""
    hidden = torch.randn(4, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 8, dtype=torch.float64, requires_grad=True)
    batch = from_padded(torch.randint(0, 17, (4, 5)))
    objective = make_objective("expo_comp", lam=0.3)
    a = torch.autograd.grad(preference_loss(hidden[:, :-1], weight, batch, objective).loss, [hidden, weight])
    b = torch.autograd.grad(
        preference_loss(hidden[:, :-1].contiguous(), weight, batch, objective).loss, [hidden, weight]
    )
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
