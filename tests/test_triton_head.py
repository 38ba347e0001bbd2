"""Triton's two routes of the head, in the interpreter: against each other, float64 and the rule of error."""

from __future__ import annotations

import itertools

import backends
import pytest
import torch
from support import DTYPE_IDS, Errors
from triton.runtime import interpreter

from benchmarks.cases import head_case
from expo_kernels import Execution, HeadOptions, reference, token_logprob, token_stats
from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton import ops, tuning
from expo_kernels.kernels.triton.head import scoring
from expo_kernels.layout import from_packed

WORKSPACE = 1 << 20
FUSED = ["triton-fused", "triton-persistent"]


def score(h, y, head, *, stats=False, stored=None):
    """The rows of a score, on whichever route the test has set."""
    return scoring.score_rows(h, y, head, stored, WORKSPACE, stats)


@pytest.mark.parametrize("route", FUSED)
@pytest.mark.parametrize("dtype", backends.FUSED, **DTYPE_IDS)
def test_the_routes_agree(route, dtype, monkeypatch):
    """Log-probs, E' and the statistics of the two routes, soft cap and bias included."""
    h, w, y = head_case(70, 48, 640, dtype=dtype, kind="trained")
    head = Head(w, torch.randn(640).to(dtype), 5.0, 1.3)
    made = {}
    for name in ("triton", route):
        backends.use(name, monkeypatch)
        stored = torch.empty(70, 640, dtype=dtype)
        rows = score(h, y, head, stats=True, stored=stored)
        made[name] = rows, stored.double() * rows.inverse.double()[:, None]
    (a, p), (b, q) = made["triton"], made[route]
    assert torch.allclose(a.logp, b.logp, rtol=1e-5, atol=1e-6) and torch.allclose(a.pull, b.pull, rtol=1e-5, atol=1e-7)
    assert torch.allclose(a.entropy, b.entropy, rtol=1e-5, atol=1e-5) and torch.equal(a.is_argmax, b.is_argmax)
    assert torch.allclose(p, q, rtol=2 * torch.finfo(dtype).eps + 1e-5, atol=1e-8)


@pytest.mark.parametrize("route", FUSED)
def test_flagged_rows_are_redone_and_leave_their_neighbours_alone(route, monkeypatch):
    """nll of 50 to 1,000 nats: the offset of the label does not serve, the true maximum does. With and without such
    neighbours a row has the same bits."""
    backends.use(route, monkeypatch)
    N, D, V = 40, 16, 300
    h, w, y = head_case(N, D, V, kind="trained")
    far = torch.tensor([3, 17, 35])
    hard = h.clone()
    hard[far] = torch.tensor([60.0, 150.0, 1000.0])[:, None] * (w[5] / w[5].square().sum())
    flagged = []
    merge = scoring.merge
    monkeypatch.setattr(scoring, "merge", lambda *a, redo: merge(*a, redo=redo) or flagged.append(a[3].clone()))
    head, stored = Head(w, None, None, 1.0), torch.empty(N, V)
    rows = score(hard, y, head, stored=stored)
    assert flagged[0].nonzero()[:, 0].tolist() == far.tolist()
    exact = torch.log_softmax(hard.double() @ w.double().T, -1)
    logp = exact.gather(1, y[:, None])[:, 0]
    assert torch.allclose(rows.logp.double(), logp, rtol=2e-6)
    probabilities = stored.double() * rows.inverse.double()[:, None]
    want = exact.exp().scatter(1, y[:, None], 0.0)
    assert torch.allclose(probabilities, want, rtol=1e-4, atol=1e-7)
    others = torch.ones(N, dtype=torch.bool)
    others[far] = False
    alone = score(h, y, head)
    assert torch.equal(rows.logp[others], alone.logp[others])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], **DTYPE_IDS)
def test_far_labels_on_the_library_s_route(dtype, monkeypatch):
    """E' is made with the sums, relative to the label, and again where that does not serve: nll of 30 to 1,000 nats,
    labels certain to e^-60. The others are left alone."""
    backends.use("triton", monkeypatch)
    N, D, V = 40, 16, 700
    h, w, y = head_case(N, D, V, kind="trained", dtype=torch.float64)
    far, sure = torch.tensor([3, 17, 33, 35]), torch.tensor([4, 20])
    hard = h.clone()
    nats = torch.tensor([30.0, 60.0, 150.0, 1000.0])
    hard[far] = nats[:, None] * (w[5] / w[5].square().sum())
    hard[sure] = 60.0 * w[y[sure]] / w[y[sure]].square().sum(-1, keepdim=True)
    h, hard, w = h.to(dtype), hard.to(dtype), w.to(dtype)
    head, stored, easy = Head(w, None, None, 1.0), torch.empty(N, V, dtype=dtype), torch.empty(N, V, dtype=dtype)
    made, alone = score(hard, y, head, stored=stored), score(h, y, head, stored=easy)
    exact = torch.log_softmax(hard.double() @ w.double().T, -1)
    logp, eps = exact.gather(1, y[:, None])[:, 0], torch.finfo(dtype).eps
    assert torch.allclose(made.logp.double(), logp, rtol=2e-5, atol=1e-30)  # fp32 logits of 60 are off by 1e-5
    probabilities = stored.double() * made.inverse.double()[:, None]
    want = exact.exp().scatter(1, y[:, None], 0.0)
    assert torch.allclose(probabilities, want, rtol=max(eps, 2e-4), atol=1e-6)
    others = torch.ones(N, dtype=torch.bool)
    others[torch.cat([far, sure])] = False
    assert torch.equal(made.logp[others], alone.logp[others]) and torch.equal(stored[others], easy[others])
    assert torch.equal(made.logp, score(hard, y, head).logp), "forward only"
    if dtype != torch.float16:
        largest = stored.amax(1).double().log()
        assert bool((largest[far[1:]] < 1e-2).all()) and float(largest[far[0]]) == pytest.approx(30.0, abs=8.0)


@pytest.mark.parametrize("pieces", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["trained", "peaked"])
def test_the_pieces_of_a_row(kind, pieces, monkeypatch):
    """However many, the same numbers up to rounding; as many programs for one row as for many, and the same bits."""
    walk = tuning.INTERPRETER.walk._replace(rows=4, columns=64, pieces=pieces)
    monkeypatch.setattr(tuning, "INTERPRETER", tuning.INTERPRETER._replace(walk=walk))
    grids, launch = [], interpreter.GridExecutor.__call__

    def seen(self, *args, **kwargs):
        grids.append((self.fn.__name__, self.grid))
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", seen)
    h, w, y = head_case(9, 16, 515, kind=kind)
    head = Head(w, None, None, 1.0)
    whole = score(h, y, head, stats=True)
    first = score(h[:1], y[:1], head, stats=True)
    assert [grid[1] for name, grid in grids if name == "_row_sums"] == [{1: 1, 2: 2, 3: 3, 8: 5}[pieces]] * 2
    assert torch.equal(whole.logp[:1], first.logp) and torch.equal(whole.entropy[:1], first.entropy)
    exact = torch.log_softmax(h.double() @ w.double().T, -1)
    assert torch.allclose(whole.logp.double(), exact.gather(1, y[:, None])[:, 0], rtol=3e-6, atol=1e-9)
    assert torch.allclose(whole.entropy.double(), -(exact.exp() * exact).sum(-1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("route", ["triton", *FUSED])
def test_a_label_that_is_none_poisons_its_own_row(route, monkeypatch):
    """What no host has checked: NaN for that token, the others untouched, nothing written out of bounds."""
    backends.use(route, monkeypatch)
    h, w, y = head_case(20, 16, 130)
    bad = y.clone()
    bad[3], bad[11] = 130, -7
    head = Head(w, torch.randn(130), None, 1.0)
    stored = torch.empty(20, 130)
    rows, right = score(h, bad, head, stored=stored), score(h, y, head)
    wrong = torch.zeros(20, dtype=torch.bool)
    wrong[[3, 11]] = True
    assert torch.equal(rows.logp.isnan(), wrong) and torch.equal(rows.inverse.isnan(), wrong)
    assert torch.equal(rows.logp[~wrong], right.logp[~wrong])
    dw, db = torch.zeros(130, 16), torch.zeros(130)
    dh = ops.backprop(
        stored[4:11], rows.inverse[4:11], rows.pull[4:11], bad[4:11], torch.ones(7), h[4:11], w, 1.0, dw, db, None,
        True, WORKSPACE,
    )  # fmt: skip
    assert bool(dh.isfinite().all()) and bool(dw.isfinite().all())


@pytest.mark.parametrize("route", ["triton", *FUSED])
@pytest.mark.parametrize("kind", ["trained", "peaked"])
def test_statistics(route, kind, monkeypatch):
    """Entropy and is_argmax against float64; the log-prob does not depend on whether they are asked for."""
    backends.use(route, monkeypatch)
    h, w, y = head_case(40, 32, 300, kind=kind)
    rows = score(h, y, Head(w, None, None, 1.0), stats=True)
    assert torch.equal(rows.logp, score(h, y, Head(w, None, None, 1.0)).logp)
    logp = torch.log_softmax(h.double() @ w.double().T, -1)
    entropy = -(logp.exp() * logp).sum(-1)
    scale = float((h @ w.T).abs().max())
    assert float((rows.entropy.double() - entropy).abs().max()) < 4 * torch.finfo(torch.float32).eps * scale
    assert torch.equal(rows.is_argmax, logp.argmax(-1) == y) and bool(rows.is_argmax.any())


@pytest.mark.parametrize("route", ["triton", *FUSED])
def test_strided_operands_are_read_where_they_lie(route, monkeypatch):
    """Every second row of h and every second entry of the bias; w by columns."""
    backends.use(route, monkeypatch)
    h, w, y = head_case(12, 16, 130)
    bias = torch.randn(260)[::2]
    wide = h.repeat_interleave(2, 0)[::2]
    arguments = (1.0, WORKSPACE, False)
    made = ops.logprob(wide, y.repeat_interleave(2)[::2], w.T.contiguous().T, bias, None, *arguments)
    assert torch.equal(made[0], ops.logprob(h, y, w, bias.contiguous(), None, *arguments)[0])


@pytest.mark.parametrize("V", [1, 2, 127, 128, 129, 513])
@pytest.mark.parametrize("D", [1, 7, 64, 100])
@pytest.mark.parametrize("route", ["triton", "triton-fused"])
def test_every_size(route, D, V, monkeypatch):
    """No D or V is special, nor a column of the last tile."""
    backends.use(route, monkeypatch)
    h, w = torch.randn(5, D), torch.randn(V, D)
    y = torch.tensor([0, V - 1, V // 2, max(V - 2, 0), 0])
    rows = score(h, y, Head(w, None, None, 1.0))
    exact = torch.log_softmax(h.double() @ w.double().T, -1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(rows.logp.double(), exact, rtol=1e-5, atol=1e-5)


def of_error():
    """On every kind of logits, by every route, in every dtype; make test has one in three."""
    kinds, routes = ("flat", "trained", "peaked"), ("triton", "triton-fused")
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    for i, (route, kind, dtype) in enumerate(itertools.product(routes, kinds, dtypes)):
        marks = [pytest.mark.slow] if (i + i // 3 + i // 9) % 3 else []
        yield pytest.param(route, kind, dtype, marks=marks, id=f"{kind}-{route}-{str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize(("route", "kind", "dtype"), of_error())
def test_the_rule_of_error(route, kind, dtype, monkeypatch):
    """nll, dh, dw and db of the token operation, coefficients from 1 to 1e-12."""
    if not backends.applies(route, dtype):
        return
    execution = Execution(backend=backends.use(route, monkeypatch), workspace_bytes=WORKSPACE)
    errors, twice_rounded, N, V = Errors(), Errors(), 40, 515
    for seed in range(5):
        h, w, y = head_case(N, 40, V, kind=kind, dtype=dtype, seed=seed)
        bias = (0.1 * torch.randn(V, generator=torch.Generator().manual_seed(seed))).to(dtype)
        batch = from_packed(y, torch.arange(N + 1), roles=1)
        c = torch.logspace(0, -12, N, dtype=torch.float64)[torch.randperm(N)]

        def gradients(function, at, operands=(h, w, bias), batch=batch, c=c):
            leaves = [x.to(at).detach().clone().requires_grad_() for x in operands]
            logp = function(leaves[0], leaves[1], batch, head=HeadOptions(bias=leaves[2]))
            (logp * c.to(logp.dtype)).sum().backward()
            return [-logp.detach(), *(x.grad for x in leaves)]

        exact, plain = gradients(reference.token_logprob, torch.float64), gradients(reference.token_logprob, dtype)
        made = gradients(lambda *a, **k: token_logprob(*a, **k, execution=execution), dtype)
        floor = 2 * torch.finfo(torch.float32).eps * float(1 + (h.double() @ w.double().T).abs().max())
        for name, *values in zip(("nll", "dh", "dw", "db"), made, plain, exact, strict=True):
            (twice_rounded if name == "dw" and dtype == torch.bfloat16 else errors).add(name, *values, floor)
    errors.check()
    # E' and (c / S) h, both in bf16: two roundings against plain's one (docs/decisions/0003)
    twice_rounded.check(factor=2.0, elementwise=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], **DTYPE_IDS)
@pytest.mark.parametrize("route", ["triton", *FUSED])
def test_bits_do_not_depend_on_neighbours_or_the_operation(route, dtype, monkeypatch):
    if not backends.applies(route, dtype):
        return
    execution = Execution(backend=backends.use(route, monkeypatch), workspace_bytes=WORKSPACE)
    N, D, V = 70, 48, 304
    h, w, y = head_case(N, D, V, dtype=dtype)

    def logp(rows):
        batch = from_packed(y[rows], torch.tensor([0, len(rows)]), roles=1)
        return token_stats(h[rows], w, batch, execution=execution).logp

    whole = logp(torch.arange(N))
    for n in (1, 2, 31, 33, 64):
        assert torch.equal(logp(torch.arange(n)), whole[:n])
        assert torch.equal(logp(torch.arange(N - n, N)), whole[N - n :])
    shuffled = torch.randperm(N)
    assert torch.equal(logp(shuffled), whole[shuffled])
    batch = from_packed(y, torch.tensor([0, N]), roles=1)
    trained = token_logprob(h.clone().requires_grad_(), w.clone().requires_grad_(), batch, execution=execution)
    assert torch.equal(trained, whole)
