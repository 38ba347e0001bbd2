"""Layouts compact to one and the same Batch; the plan covers every token once; properties over random ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expo_kernels import Divisors, Execution, Needs, Terms, reference
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import chunk_plan, default_divisors, empty_groups, from_packed, from_padded, split_parts
from expo_kernels.objectives import make_objective
from expo_kernels.types import Batch, Counts


def fields(batch: Batch):
    return {k: v for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}


def test_padded_by_hand():
    labels = torch.tensor([[-100, 5, 6], [7, -100, 8], [-100, -100, 9], [1, 2, 3]])
    batch = from_padded(labels)
    assert batch.labels.tolist() == [5, 6, 7, 8, 9, 1, 2, 3]
    assert batch.rows.tolist() == [1, 2, 3, 5, 8, 9, 10, 11]
    assert batch.segments.tolist() == [0, 0, 1, 1, 2, 3, 3, 3]
    assert batch.offsets.tolist() == [0, 2, 4, 5, 8] and batch.lengths.tolist() == [2, 2, 1, 3]
    assert batch.by_group.tolist() == [0, 1, 4, 2, 3, 5, 6, 7]  # pair 0: sequences 0 and 2; pair 1: 1 and 3
    assert batch.host.groups == 2 and batch.host.max_label == 9 and not batch.host.repeated_rows


def test_packed_by_hand():
    batch = from_packed(
        torch.tensor([4, -100, 5, 6, 7]), torch.tensor([0, 2, 2, 5]), roles=1, anchors=1,
        rows=torch.tensor([3, 1, 3, 0, 2]),
    )  # fmt: skip
    assert batch.labels.tolist() == [4, 5, 6, 7] and batch.rows.tolist() == [3, 3, 0, 2]
    assert batch.lengths.tolist() == [1, 0, 3] and batch.anchor_weights.tolist() == [1.0]
    assert batch.host.repeated_rows and batch.host.max_row == 3 and batch.by_group is None
    assert empty_groups(batch.host) == 1
    assert default_divisors(batch.host) == Counts(groups=1, anchors=1, tokens=1)


def test_counts():
    labels = torch.full((6, 4), -100)
    labels[0, :3] = 1  # pair 0: 3 and 2 tokens
    labels[2, :2] = 1
    labels[1, :4] = 1  # pair 1: 4 and none
    labels[4, :1] = 1  # anchor 0: 1 token, anchor 1: none
    host = from_padded(labels, anchors=2).host
    assert default_divisors(host) == Counts(groups=1, anchors=1, tokens=3)
    assert empty_groups(host) == 1


def test_token_weights_mean():
    batch = from_padded(torch.tensor([[1, -100], [1, 1]]), token_weights="mean")
    assert batch.token_weights.tolist() == [1.0, 0.5, 0.5] and batch.host.mean_weights


def test_a_data_loader_can_pin_it(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    batch = from_padded(torch.ones(4, 3, dtype=torch.long))
    assert batch.pin_memory().host is batch.host and len(pinned) == len(fields(batch))


def test_to_moves_every_tensor():
    batch = from_padded(torch.ones(4, 3, dtype=torch.long), anchors=2, token_weights="mean")
    moved = batch.to("meta")
    assert all(value.device.type == "meta" for value in fields(moved).values())
    assert fields(moved).keys() == fields(batch).keys() and moved.host is batch.host


masks = st.integers(1, 3).flatmap(
    lambda roles: st.tuples(st.just(roles), st.integers(0, 4), st.integers(0, 2), st.integers(0, 2), st.integers(1, 5))
)


@st.composite
def layouts(draw):
    """roles, groups, anchors, forward_only and a mask [S, T] of scored tokens."""
    roles, groups, anchors, forward_only, T = draw(masks)
    S = roles * groups + anchors + forward_only
    if S == 0:
        groups, S = 1, roles
    bits = draw(st.lists(st.booleans(), min_size=S * T, max_size=S * T))
    return roles, groups, anchors, forward_only, torch.tensor(bits).view(S, T)


@settings(max_examples=80, deadline=None)
@given(layouts())
def test_padded_and_packed_make_one_batch(layout):
    roles, _, anchors, forward_only, mask = layout
    labels = torch.where(mask, torch.arange(mask.numel()).view(mask.shape), -100)
    counts = {"roles": roles, "anchors": anchors, "forward_only": forward_only}
    padded = from_padded(labels, **counts)
    cu = torch.arange(mask.shape[0] + 1) * mask.shape[1]
    packed = from_packed(labels.flatten(), cu, **counts)
    squeezed = from_packed(padded.labels, padded.offsets, rows=padded.rows, **counts)
    for other in (packed, squeezed):
        assert fields(other).keys() == fields(padded).keys()
        assert all(torch.equal(value, fields(padded)[name]) for name, value in fields(other).items())


@settings(max_examples=150, deadline=None)
@given(layouts(), st.integers(1, 12), st.booleans())
def test_the_plan_covers_every_trained_token_once(layout, rows, whole_batch):
    roles, groups, anchors, forward_only, mask = layout
    host = from_padded(torch.where(mask, 1, -100), roles=roles, anchors=anchors, forward_only=forward_only).host
    plan = chunk_plan(host, rows, whole_batch)
    seen = [t for unit in plan for a, b in (*unit.parts, unit.anchors) for t in range(a, b)]
    assert sorted(seen) == list(range(sum(host.lengths[: len(host.lengths) - forward_only])))
    assert [g for unit in plan for g in range(*unit.groups)] == list(range(groups))
    for unit in plan:
        kept = (unit.parts[-1][1] - unit.parts[-1][0] if unit.parts else 0) + unit.anchors[1] - unit.anchors[0]
        assert kept <= rows and all(b - a <= rows for a, b in unit.parts)
        if len(unit.parts) > 1:
            assert unit.parts[-1][1] - unit.parts[-1][0] == rows, "a unit that is scored twice keeps all it can"
            assert whole_batch or unit.groups[1] - unit.groups[0] == 1, "only a group larger than the workspace is"


def test_the_plan_is_balanced():
    """Ten pairs of 10 tokens in 90 rows: two chunks of 50, not 90 and 10; anchors fill what room is left."""
    host = from_padded(torch.ones(20, 5, dtype=torch.long)).host
    assert [sum(b - a for a, b in unit.parts) for unit in chunk_plan(host, 90)] == [50, 50]
    host = from_padded(torch.ones(24, 5, dtype=torch.long), anchors=4).host
    assert [unit.anchors for unit in chunk_plan(host, 90)] == [(100, 100), (100, 120)]  # 60 and 60


@pytest.mark.parametrize(("n", "rows", "want"), [(10, 10, [10]), (25, 10, [7, 8, 10]), (11, 10, [1, 10]), (0, 3, [0])])
def test_split_parts(n, rows, want):
    assert [b - a for a, b in split_parts(5, 5 + n, rows)] == want


class SumOfSquares:
    """Any roles, no reference: an objective for random layouts."""

    needs = Needs(roles=None, anchor_scale=-0.3)

    def __call__(self, logps):
        return Terms(logps.policy.square().sum(0), 2 * logps.policy, logps.policy)


@settings(max_examples=40, deadline=None)
@given(layouts(), st.integers(0, 10**6), st.sampled_from([1 << 12, 1 << 14, 1 << 20]))
def test_loss_and_gradients_on_any_layout(layout, seed, workspace_bytes):
    roles, _, anchors, forward_only, mask = layout
    random = torch.Generator().manual_seed(seed)
    labels = torch.where(mask, torch.randint(0, 23, mask.shape, generator=random), -100)
    batch = from_padded(labels, roles=roles, anchors=anchors, forward_only=forward_only)
    hidden = torch.randn(*mask.shape, 4, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(23, 4, generator=random, dtype=torch.float64, requires_grad=True)
    own = default_divisors(batch.host)._replace(anchors=max(anchors, 1))
    out = preference_loss(
        hidden, weight, batch, SumOfSquares(), divisor=Divisors(*own),
        execution=Execution(workspace_bytes=workspace_bytes),
    )  # fmt: skip
    exact = reference.preference_loss(hidden, weight, batch, SumOfSquares(), divisors=own)
    assert torch.allclose(out.loss, exact, rtol=1e-10, atol=1e-12)
    made = torch.autograd.grad(out.loss, [hidden, weight])
    want = torch.autograd.grad(exact, [hidden, weight], allow_unused=True, materialize_grads=True)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(made, want, strict=True))
    assert torch.equal(out.lengths, mask.sum(1))
    seq = reference.sequence_logprob(hidden, weight, batch)
    assert torch.allclose(out.seq_logps, seq, rtol=1e-10, atol=1e-12)


def test_a_batch_averages_over_its_active_pairs():
    """Halving the batch's pairs by an explicit divisor halves the loss."""
    hidden, weight, labels = torch.randn(4, 3, 8), torch.randn(9, 8), torch.randint(0, 9, (4, 3))
    objective = make_objective("expo_comp", lam=0.3)
    a, b = (preference_loss(hidden, weight, labels, objective, divisor=d).loss for d in (None, torch.tensor(4.0)))
    assert torch.allclose(a, 2 * b)
