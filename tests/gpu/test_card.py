"""On a real card: the parity file, real sizes beyond 2^31 elements, bits, no synchronisation, CUDA graphs.

make gpu-check        with the python3 that has torch, Triton and pytest; nothing else of ours is wanted
"""

from __future__ import annotations

import pytest
import test_parity
import torch
from support import DTYPE_IDS, DTYPES, SEEDS, Errors, rounding_floor, run, truth, with_reference

from benchmarks.cases import head_case
from expo_kernels import Execution, HeadOptions, sequence_logprob, token_stats
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton import product, tuning
from expo_kernels.kernels.triton.head import scoring
from expo_kernels.kernels.triton.tuning import card_for
from expo_kernels.layout import from_packed
from expo_kernels.objectives import make_objective

ROUTES = ["library", "fused"]


@pytest.fixture
def route(request, card, monkeypatch):
    """Both routes of the head on the card at hand, whichever its row of the table takes."""
    fused = request.param == "fused"
    name = card_for(card).name
    monkeypatch.setitem(tuning.CARDS, name, tuning.CARDS[name]._replace(fused=fused))
    return request.param


def on_card(case, objective, card, workspace_bytes=1 << 20):
    """What support.fused is on a host."""
    head_of = case._replace(
        hidden=case.hidden.to(card), weight=case.weight.to(card), bias=None if case.bias is None else case.bias.to(card)
    )
    columns = None if case.columns is None else {k: v.to(card) for k, v in case.columns.items()}
    refs = None if case.reference is None else case.reference.to(card)

    def loss(hidden, weight, head):
        return preference_loss(
            hidden, weight, case.batch.to(card), objective, reference=refs, columns=columns, head=head,
            execution=Execution(workspace_bytes=workspace_bytes, backend="triton"),
        ).loss  # fmt: skip

    return {name: value.cpu() for name, value in run(loss, head_of, case.hidden.dtype).items()}


@pytest.mark.parametrize("route", ROUTES, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
@pytest.mark.parametrize("case", test_parity.CASES, ids=lambda c: f"{type(c[1]).__name__}-{c[0]}")
def test_loss_and_gradients(case, dtype, route, card):
    _, objective, layout = case
    errors = Errors()
    for seed in SEEDS:
        made = with_reference(layout(dtype, seed), objective, seed)
        exact, plain = truth(made, objective), truth(made, objective, dtype)
        ours, floor = on_card(made, objective, card), rounding_floor(made)
        for name in exact:
            errors.add(name, ours[name], plain[name], exact[name], floor)
    errors.check()


@pytest.mark.parametrize("route", ROUTES, indirect=True)
@pytest.mark.parametrize("V", [128256, 256000])
def test_real_sizes(V, route, card):
    """More than 2^31 elements of E', D 4096: the last rows and columns are as right as the first, and so are reruns."""
    N, D = (1 << 31) // V + 700, 4096
    h = torch.randn(N, D, device=card, dtype=torch.bfloat16)
    w = torch.randn(V, D, device=card, dtype=torch.bfloat16) / D**0.5
    y = torch.randint(0, V, (N,), device=card)
    batch = from_packed(y.cpu(), torch.tensor([0, N // 2, N])).to(card)
    execution = Execution(backend="triton", workspace_bytes=16 << 30)

    def step():
        hidden, weight = h.detach().requires_grad_(), w.detach().requires_grad_()
        objective = make_objective("expo_comp", lam=0.3, temperature=1e4)
        out = preference_loss(hidden, weight, batch, objective, execution=execution)
        out.loss.backward()
        return out.loss.detach(), out.terms.coefficients, hidden.grad, weight.grad

    first = step()
    assert all(map(torch.equal, first, step())), "two runs are identical"
    _, coefficients, d_hidden, d_weight = first
    logp = token_stats(h, w, batch, execution=execution).logp.double()
    c = coefficients.double()[(torch.arange(N, device=card) >= N // 2).long()]
    some = torch.cat([torch.arange(64), torch.arange(N - 64, N)]).to(card)
    exact = torch.log_softmax(h[some].double() @ w.double().T, -1)
    assert torch.allclose(logp[some], exact.gather(1, y[some, None])[:, 0], rtol=1e-5, atol=1e-5)
    onehot = torch.zeros_like(exact).scatter_(1, y[some, None], 1.0)
    close(d_hidden[some], c[some, None] * ((onehot - exact.exp()) @ w.double()), 2**-7)
    # p_nv = exp(z_nv - (z_ny - logp_n)): columns of the vocabulary without all the others
    columns = torch.cat([torch.arange(48), torch.arange(V - 48, V)]).to(card)
    log_total = (h.double() * w[y].double()).sum(1) - logp
    p = (h.double() @ w[columns].double().T - log_total[:, None]).exp()
    da = c[:, None] * ((y[:, None] == columns).double() - p)
    close(d_weight[columns], da.T @ h.double(), 2**-6)  # E' and (c / S) h are both rounded (docs/decisions/0003)


def close(found, exact, within):
    """Every row, relative in norm."""
    off = (found.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert float(off.max()) < within and bool(found.isfinite().all())


@pytest.mark.parametrize("route", ROUTES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], **DTYPE_IDS)
def test_bits(dtype, route, card):
    """Reruns are identical; a log-prob does not depend on its neighbours, on the chunk or on the operation."""
    N, D, V = 1500, 1000, 32001
    h, w, y = (x.to(card) for x in head_case(N, D, V, dtype=dtype))
    execution = Execution(backend="triton", workspace_bytes=64 << 20)
    objective, grads = make_objective("expo_comp", lam=0.3, temperature=1e3), []
    batch = from_packed(y.cpu(), torch.tensor([0, 400, 700, 1100, N])).to(card)
    for _ in range(2):
        hidden, weight = h.clone().requires_grad_(), w.clone().requires_grad_()
        out = preference_loss(hidden, weight, batch, objective, execution=execution)
        out.loss.backward()
        grads.append((out.loss.detach(), out.seq_logps, hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with torch.no_grad():
        assert torch.equal(sequence_logprob(h, w, batch, execution=execution), grads[0][1])

    def logp(rows):
        one = from_packed(y[rows].cpu(), torch.tensor([0, len(rows)]), roles=1).to(card)
        return token_stats(h[rows], w, one, execution=execution).logp

    whole = logp(torch.arange(N, device=card))
    for n in (1, 7, 40, 513):
        assert torch.equal(logp(torch.arange(n, device=card)), whole[:n])
        assert torch.equal(logp(torch.arange(N - n, N, device=card)), whole[N - n :])


@pytest.mark.parametrize("route", ROUTES, indirect=True)
def test_no_synchronisation_and_a_graph(route, card):
    """Given a Batch the exact path never asks the device, so it can be captured and replayed."""
    N, D, V = 900, 512, 32000
    h, w, y = (x.to(card) for x in head_case(N, D, V, dtype=torch.bfloat16))
    batch = from_packed(y.cpu(), torch.tensor([0, 200, 400, 700, N])).to(card)
    objective = make_objective("expo_reg", lam=0.3, temperature=1e3)
    refs, divisor = torch.full((4,), -500.0, device=card), torch.tensor(2.0, device=card)
    execution = Execution(backend="triton", workspace_bytes=64 << 20, skip_inactive=False)
    hidden, weight = h.clone().requires_grad_(), w.clone().requires_grad_()

    def step():
        hidden.grad = weight.grad = None
        out = preference_loss(
            hidden, weight, batch, objective, reference=refs, divisor=divisor, execution=execution, stats=("entropy",)
        )
        out.loss.backward()
        return out.loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            first = step().clone()  # compiles, and fills the allocator
    torch.cuda.synchronize()
    want = first, hidden.grad.clone(), weight.grad.clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    hidden.data.zero_()
    graph.replay()
    assert not torch.equal(loss, want[0]), "the replay reads what is in the buffers now"
    hidden.data.copy_(h)
    graph.replay()
    assert torch.equal(loss, want[0])
    assert torch.equal(hidden.grad, want[1]) and torch.equal(weight.grad, want[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], **DTYPE_IDS)
def test_products(dtype, card):
    """The library's product into fp32, and in place; and ours, on every kind of operand the gradient has."""
    M, N, K = 700, 640, 1056
    a, b = torch.randn(K, M, device=card).to(dtype).T, torch.randn(K, N, device=card).to(dtype)
    start = torch.randn(M, N, device=card)
    exact = a.double() @ b.double()
    library = product.library_product if product.library_has_it(a, start, add=True) else None
    row = card_for(card)
    tiled = row._replace(product_persistent=None)
    ours = [lambda *args, add, row=row: product.own_product(*args, row, add=add) for row in (row, tiled)]
    for make in filter(None, (library, *ours)):
        for add in (False, True):
            out = start.clone()
            make(a, b, out, add=add)
            want = exact + start.double() if add else exact
            # tensor cores truncate their sums; a bf16 rounding would be 1e-3
            assert float((out.double() - want).norm() / want.norm()) < (1e-5 if dtype.itemsize == 2 else 1e-6)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("kind", ["trained", "peaked"])
def test_every_head_kernel(kind, softcap, persistent, card, monkeypatch):
    """Both routes at vectors' sizes, with the redo of improbable labels, against float64."""
    name = card_for(card).name
    row = tuning.CARDS[name]
    N, D, V = 300, 64, 640
    h, w, y = (x.to(card) for x in head_case(N, D, V, dtype=torch.bfloat16, kind=kind))
    bias = torch.randn(V, device=card, dtype=torch.bfloat16)
    exact = 1.3 * (h.double() @ w.double().T + bias.double())
    exact = exact if softcap is None else softcap * torch.tanh(exact / softcap)
    exact = torch.log_softmax(exact, -1)
    logp = exact.gather(1, y[:, None])[:, 0]
    probabilities = exact.exp().scatter(1, y[:, None], 0.0)
    for fused in (False, True):
        changed = row._replace(fused=fused, persistent=row.persistent if persistent else None)
        monkeypatch.setitem(tuning.CARDS, name, changed)
        e = torch.empty(N, V, device=card, dtype=torch.bfloat16)
        head = Head(w, bias, softcap, 1.3)
        rows = scoring.score_rows(h, y, head, e, 1 << 24, True)
        assert torch.allclose(rows.logp.double(), logp, rtol=1e-4, atol=1e-5)
        assert torch.allclose(rows.entropy.double(), -(exact.exp() * exact).sum(-1), atol=1e-3)
        if softcap is None:
            assert torch.allclose(e.double() * rows.inverse.double()[:, None], probabilities, rtol=1e-2, atol=1e-6)
        again = scoring.score_rows(h, y, head, None, 1 << 24, False)
        assert torch.equal(again.logp, rows.logp), "forward only has the same bits"


def test_statistics(card):
    h, w, y = (x.to(card) for x in head_case(300, 128, 5003, dtype=torch.float32))
    batch = from_packed(y.cpu(), torch.tensor([0, 300]), roles=1).to(card)
    stats = token_stats(h, w, batch, head=HeadOptions(softcap=9.0), execution=Execution(backend="triton"))
    logp = torch.log_softmax(9.0 * torch.tanh(h.double() @ w.double().T / 9.0), -1)
    assert torch.allclose(stats.entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-4)
    assert float((stats.is_argmax == (logp.argmax(-1) == y)).double().mean()) > 0.99
