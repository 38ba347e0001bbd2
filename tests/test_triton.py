"""The Triton kernels one by one, in the interpreter: each against the same thing in torch."""

from __future__ import annotations

import itertools
import math

import backends
import pytest
import torch
from support import Errors
from triton.runtime import interpreter

from benchmarks.cases import head_case
from expo_kernels import Execution, HeadOptions, reference, token_logprob, token_stats
from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton import budget, ops, product, scoring, tuning
from expo_kernels.kernels.triton.labels import scatter_labels
from expo_kernels.kernels.triton.tuning import Tiles
from expo_kernels.layout import from_packed
from expo_kernels.objectives import make_objective
from expo_kernels.types import Counts, PairForm, SequenceLogprobs

WORKSPACE = 1 << 20
FUSED = ["triton-fused", "triton-persistent"]
DTYPE_IDS = {"ids": lambda d: str(d).removeprefix("torch.")}


def score(h, y, head, *, stats=False, stored=None):
    """The rows of a score, on whichever route the test has set."""
    return scoring.score_rows(h, y, head, stored, WORKSPACE, stats)


# --- the pair kernel -------------------------------------------------------------------------------------------------

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


# --- the head --------------------------------------------------------------------------------------------------------


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


# --- products, labels, sums ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], **DTYPE_IDS)
@pytest.mark.parametrize("size", [(1, 1, 1), (33, 65, 20), (64, 300, 130), (5, 17, 257)], ids=str)
def test_own_product(size, dtype, add):
    M, N, K = size
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = torch.randn(K, M).to(dtype).T, torch.randn(K, N).to(dtype)  # a is transposed, as E' is on the way to dw
    out = torch.randn(M, N + 3, dtype=wide)[:, :N]
    want = a.double() @ b.double() + (out.double() if add else 0)
    product.tiled_product(a, b, out, Tiles(32, 64, 32, 4, 1, 2), add=add)
    assert torch.allclose(out.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("size", [(8, 8, 8), (40, 72, 24), (72, 304, 136)], ids=str)
def test_own_product_by_descriptors(size, turned, add):
    """Either operand either way; the last tiles end within M, N and K, and more tiles than programs."""
    (M, N, K), row = size, tuning.INTERPRETER._replace(product_persistent=Tiles(32, 64, 32, 4, 1, 2, slices=2))
    a, b = torch.randn(M, K).bfloat16(), torch.randn(K, N).bfloat16()
    a, b = (x.T.contiguous().T if other else x for x, other in zip((a, b), turned, strict=True))
    out = torch.randn(M, N + 3)[:, :N]
    want = a.double() @ b.double() + (out.double() if add else 0)
    assert product.takes_descriptors(a, b)
    product.own_product(a, b, out, row, add=add)
    assert torch.allclose(out.double(), want, rtol=1e-5, atol=1e-5)


def test_which_operands_take_descriptors():
    wide = torch.randn(8, 24).bfloat16()
    assert product.takes_descriptors(wide[:, :9], wide.T) and product.takes_descriptors(wide[:, 8:].T, wide)
    assert not product.takes_descriptors(wide[:, 1:], wide.T), "the base is not at a vector"
    assert not product.takes_descriptors(wide[:, :9].contiguous(), wide.T), "nor are these rows"
    assert not product.takes_descriptors(wide[:, ::8], wide.T), "nor is anything side by side"
    assert not product.takes_descriptors(wide[:0], wide.T) and not product.takes_descriptors(wide.float(), wide.T)


@pytest.mark.parametrize("known", [True, False])
def test_ours_is_taken_where_the_table_says_so(known, monkeypatch):
    """Of 16-bit operands, although the library has a product."""
    monkeypatch.setattr(product, "library_has_it", lambda *a, **k: known)
    taken = []
    monkeypatch.setattr(product, "library_product", lambda *a, **k: taken.append("library"))
    monkeypatch.setattr(product, "own_product", lambda *a, **k: taken.append("own"))
    a, out = torch.randn(8, 8), torch.zeros(8, 8)
    for own in (False, True):
        monkeypatch.setattr(tuning, "INTERPRETER", tuning.INTERPRETER._replace(own_products=own))
        for dtype in (torch.bfloat16, torch.float32):
            product.product(a.to(dtype), a.to(dtype), out, add=False)
    assert taken == (["library", "library", "own", "library"] if known else ["own"] * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **DTYPE_IDS)
def test_the_library_product_is_the_same_thing(dtype):
    a, b = torch.randn(9, 7, dtype=dtype), torch.randn(7, 5, dtype=dtype)
    out, own = torch.ones(9, 5, dtype=dtype), torch.ones(9, 5, dtype=dtype)
    for add in (True, False):
        product.library_product(a, b, out, add=add)
        product.tiled_product(a, b, own, tuning.INTERPRETER.small, add=add)
        assert torch.allclose(out, own, rtol=1e-5, atol=1e-6)
    assert not product.library_has_it(a.bfloat16(), out, add=True)


def test_labels_are_scattered_in_order():
    """dw[y] += label h, tokens of one label one after the other: the bits of a loop over the tokens."""
    n, D, V = 50, 21, 12
    y, h, label = torch.randint(0, V - 2, (n,)), torch.randn(n, D), torch.randn(n)
    dw, db = torch.randn(V, D), torch.randn(V)
    want_w, want_b = dw.clone(), db.clone()
    for v in range(V):
        row, bias = torch.zeros(D), torch.zeros(())
        for i in (y == v).nonzero()[:, 0]:
            row, bias = row + label[i] * h[i], bias + label[i]
        want_w[v], want_b[v] = want_w[v] + row, want_b[v] + bias
    scatter_labels(dw, db, y, h, label)
    assert torch.equal(dw, want_w) and torch.equal(db, want_b)
    scatter_labels(None, db, y, h, label)
    scatter_labels(dw, None, y[:0], h[:0], label[:0])
    assert torch.equal(dw, want_w) and not torch.equal(db, want_b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **DTYPE_IDS)
def test_segment_sums(dtype):
    offsets = torch.tensor([0, 0, 1, 300, 300, 1000])
    values = (torch.randn(1000, dtype=torch.float64) * 100).to(dtype)
    sums = ops.segment_sum(values, offsets)
    exact = torch.stack([values[a:b].double().sum() for a, b in itertools.pairwise(offsets)])
    assert torch.equal(sums, exact.to(dtype)) or torch.allclose(sums.double(), exact, rtol=torch.finfo(dtype).eps)
    alone = ops.segment_sum(values[300:], torch.tensor([0, 700]))
    assert torch.equal(alone[0], sums[4]), "a sum's bits are its own"


@pytest.mark.parametrize("rows", [None, [0, 3, 4, 9]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **DTYPE_IDS)
def test_backprop(dtype, rows):
    """dh, dw and db from a stored E', for all rows and for some."""
    n, D, V = 10, 20, 150
    stored, h, w = torch.rand(n, V).to(dtype), torch.randn(n, D).to(dtype), torch.randn(V, D).to(dtype)
    inverse, pull, c, y = torch.rand(n), torch.rand(n), torch.randn(n), torch.randint(0, V, (n,))
    dw, db = torch.ones(V, D), torch.ones(V)
    some = None if rows is None else torch.tensor(rows)
    dh = ops.backprop(stored, inverse, pull, y, c, h, w, 1.5, dw, db, some, True, 1 << 16)
    kept = torch.arange(n) if rows is None else some
    da = 1.5 * c.double()[:, None] * -inverse.double()[:, None] * stored.double()
    da[torch.arange(n), y] += 1.5 * c.double() * pull.double()
    da = da[kept]
    eps = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6
    assert torch.allclose(dh.double(), da @ w.double(), rtol=1e-4, atol=1e-4)
    assert torch.allclose(dw.double() - 1, da.T @ h.double()[kept], rtol=4 * eps, atol=8 * eps)
    assert torch.allclose(db.double() - 1, da.sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("small", [1e-5, 1e-12])
def test_fp16_keeps_small_coefficients(small):
    """A mean over a step's tokens makes c small: dw is as precise as with c = 1, though fp16 itself ends at 6e-8."""
    n, D, V = 12, 20, 150
    stored, h, w = torch.rand(n, V).half(), torch.randn(n, D).half(), torch.randn(V, D).half()
    inverse, pull, c, y = torch.rand(n), torch.rand(n), torch.randn(n), torch.randint(0, V, (n,))
    da = c.double()[:, None] * -inverse.double()[:, None] * stored.double()
    da[torch.arange(n), y] += c.double() * pull.double()
    want = da.T @ h.double()
    for rows in (None, torch.arange(n)):
        dw = torch.zeros(V, D)
        ops.backprop(stored, inverse, pull, y, c * small, h, w, 1.0, dw, None, rows, False, 1 << 16)
        assert float((dw.double() / small - want).norm() / want.norm()) < 2**-11


# --- the account of the workspace, the table of cards ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], **DTYPE_IDS)
@pytest.mark.parametrize("shape", [(4096, 128256), (2304, 256000), (64, 1000)], ids=str)
def test_the_budget_counts_every_temporary(shape, dtype):
    """What scoring and backprop of R rows allocate, by the launchers' own sizes, stays within the budget."""
    D, V = shape
    workspace = 1 << 30
    sizes = budget.budget(D, V, dtype, workspace)
    R, narrow = sizes.chunk_rows, dtype.itemsize
    tiles = math.ceil(V / tuning.MIN_COLUMNS)
    score_bytes = R * (budget.padded(V) * narrow + D * narrow + 6 * 4 * tiles + 16 * 4)
    logits = sizes.logit_rows * (budget.padded(V) * 4 + D * narrow)
    back = R * (budget.padded(V) * narrow + D * (3 * narrow + 4) + 16 * 4) + R * sizes.strip * narrow
    back += D * 4 * sizes.lifted if dtype == torch.float16 else 0
    assert score_bytes + logits <= workspace and back <= workspace
    assert R >= 1 and sizes.logit_rows in [1 << i for i in range(10)]
    with pytest.raises(ValueError, match=r"workspace_bytes: want at least \d+ for one row"):
        budget.budget(D, V, dtype, 100)


def test_every_device_has_a_card():
    assert tuning.nearest(8, 0) == "sm_80" and tuning.nearest(8, 9) == "sm_86" and tuning.nearest(9, 0) == "sm_90"
    assert tuning.nearest(10, 0) == "sm_100" and tuning.nearest(10, 3) == "sm_100" and tuning.nearest(12, 0) == "sm_86"
    for card in tuning.CARDS.values():
        for tiles in (card.head, card.capped, card.small, card.persistent or card.head):
            assert tiles.columns >= tuning.MIN_COLUMNS and tiles.columns % tiles.slices == 0
    few = torch.zeros(4, 32, dtype=torch.bfloat16)
    card = tuning.CARDS["sm_90"]
    assert card.head_tiles(None, few) is card.head and card.head_tiles(30.0, few) is card.capped
    assert card.head_tiles(None, few[:, :20].contiguous()) is card.small
    assert card.head_tiles(None, few.float()) is card.small
    assert tuning.card_for(torch.device("cpu")) is tuning.INTERPRETER
