"""Bits: the same on every run, in every layout, whoever a token's neighbours are."""

from __future__ import annotations

import pytest
import torch
from support import DTYPE_IDS, DTYPES, SMALL, fused, padded_case, padded_labels, with_reference

from benchmarks.cases import head_case
from expo_kernels import Execution, sequence_logprob, token_logprob, token_stats
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import from_packed, from_padded
from expo_kernels.objectives import make_objective

SIZES = [(33, 301), (64, 1000), (257, 777), pytest.param((512, 4099), marks=pytest.mark.slow)]


@pytest.fixture(autouse=True, scope="module")
def _two_threads():
    """A sum must not depend on how threads share it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_two_runs_are_identical(dtype):
    objective = make_objective("expo_reg", lam=0.3, temperature=20.0)
    case = with_reference(padded_case(6, 11, 33, 301, dtype=dtype, bias=True), objective, 0)
    first, second = fused(case, objective), fused(case, objective)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_padded_and_packed_are_identical(dtype):
    T, D, V = 13, 48, 301
    h, w, y = head_case(6 * T, D, V, dtype=dtype)
    labels = padded_labels(6, T, y)
    padded = from_padded(labels)
    cu = torch.tensor([0, *torch.tensor(padded.host.lengths).cumsum(0).tolist()])
    packed = from_packed(padded.labels, cu)
    objective, out = make_objective("expo_comp", lam=0.1, temperature=9.0), []
    for hidden, batch in ((h.view(6, T, D), padded), (h[padded.rows], packed)):
        hidden, weight = hidden.clone().requires_grad_(), w.clone().requires_grad_()
        made = preference_loss(hidden, weight, batch, objective, execution=Execution(workspace_bytes=SMALL))
        made.loss.backward()
        out.append((made.loss, made.seq_logps, hidden.grad.reshape(-1, D)[batch.rows], weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*out, strict=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_a_log_prob_does_not_depend_on_its_neighbours(dtype, size):
    """Every N in 1..40, and every place among other rows."""
    D, V = size
    h, w, y = head_case(40, D, V, dtype=dtype)

    def logp(rows):
        batch = from_packed(y[rows], torch.tensor([0, len(rows)]), roles=1)
        return token_logprob(h[rows], w, batch)

    whole = logp(torch.arange(40))
    for n in range(1, 41):
        assert torch.equal(logp(torch.arange(n)), whole[:n]), f"first {n} rows"
        assert torch.equal(logp(torch.arange(40 - n, 40)), whole[40 - n :]), f"last {n} rows"
    shuffled = torch.randperm(40)
    assert torch.equal(logp(shuffled), whole[shuffled])


@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_a_log_prob_does_not_depend_on_how_many_rows_are_multiplied_at_once(dtype, backend):
    """Blocks of up to 512 rows are one product where that has the bits of products of 128."""
    N, D, V = 700, 72, 301
    h, w, y = head_case(N, D, V, dtype=dtype)

    def logp(n):
        batch = from_packed(y[:n], torch.tensor([0, n]), roles=1)
        return token_logprob(h[:n], w, batch, execution=Execution(backend=backend))

    whole = logp(N)
    for n in (1, 127, 129, 300, 511, 513):
        assert torch.equal(logp(n), whole[:n]), f"{n} rows"


@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_a_log_prob_does_not_depend_on_the_chunk(dtype):
    """The budget is the same, the plan is not: forward only, in chunks of pairs, in parts of a long pair, batched."""
    case = padded_case(8, 40, 33, 301, dtype=dtype)
    w, batch = case.weight, case.batch
    small = Execution(workspace_bytes=SMALL)
    forward = token_stats(case.hidden, w, batch, execution=small).logp
    trained = token_logprob(case.hidden.clone().requires_grad_(), w.clone().requires_grad_(), batch, execution=small)
    frozen = token_logprob(case.hidden.clone().requires_grad_(), w, batch, execution=small)
    assert torch.equal(forward, trained) and torch.equal(forward, frozen)
    with torch.no_grad():
        reference = sequence_logprob(case.hidden, w, batch, execution=small)
    made = preference_loss(
        case.hidden.clone().requires_grad_(), w, batch, make_objective("expo_comp", lam=0.1), execution=small
    )
    assert torch.equal(made.seq_logps, reference)


@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_margin_at_step_zero_is_exactly_zero(dtype):
    """Policy and reference from the same hidden bits: their difference is 0.0, not about 0."""
    case = padded_case(8, 40, 33, 301, dtype=dtype)
    execution = Execution(workspace_bytes=SMALL)
    with torch.no_grad():
        reference = sequence_logprob(case.hidden, case.weight, case.batch, execution=execution)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    gap = {"gap": torch.zeros(4)}
    for name, columns in (("dpo", None), ("infifpo", None), ("ipo", None), ("distill", gap), ("rpo", gap)):
        objective = make_objective(name)
        made = preference_loss(
            hidden, weight, case.batch, objective, reference=reference, columns=columns, execution=execution
        )
        active = torch.tensor(case.batch.host.lengths).view(2, 4).amin(0) > 0
        assert bool((made.terms.margin[active] == 0).all()) and bool((made.rewards == 0).all())
