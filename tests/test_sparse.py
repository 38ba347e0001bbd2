"""The certified and the unbiased sparse gradient (docs/sparsity.md): bounds, expectations, bits, what is refused."""

from __future__ import annotations

import itertools
import math

import backends
import pytest
import torch
from backends import BACKENDS
from scipy import stats

from benchmarks.cases import head_case
from expo_kernels import Certified, Execution, HeadOptions, Unbiased, preference_loss, sequence_logprob, token_logprob
from expo_kernels.kernels.sparse import choice, crowd
from expo_kernels.kernels.sparse.draws import draws
from expo_kernels.layout import from_packed
from expo_kernels.objectives import make_objective

N, D, V = 64, 24, 515
RULES = {
    "row": Certified(tau=0.05),
    "block": Certified(tau=0.05, budget="block"),
    "unbiased": Unbiased(theta=0.02, seed=3),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
QUICK = [("row", torch.bfloat16), ("unbiased", torch.bfloat16), ("unbiased", torch.float16)]
EXPO = make_objective("expo_comp", lam=0.3, temperature=20.0)


OURS = [name for name in BACKENDS if name in ("plain", "native", "triton")]  # routes differ in the forward alone


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if name == "triton" else []) for name in OURS])
def backend(request, monkeypatch):
    return backends.use(request.param, monkeypatch)


def few_in_the_interpreter(*axes, quick):
    """Every combination on every backend; in the interpreter make test has those that are `quick`."""

    def param(name, *values):
        marks = [pytest.mark.slow] if name == "triton" and not quick(*values) else []
        return pytest.param(name, *values, marks=marks, id="-".join(map(str, (name, *values))))

    return [param(*values) for values in itertools.product(OURS, *axes)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(crowd, "BLOCK", 16)


def gradients(h, w, y, c, backend, rule=None, dtype=None, **head):
    """dh, dw, db of sum c logp, and the report of what was left out."""
    told = []
    leaves = [x.to(dtype or x.dtype).detach().clone().requires_grad_() for x in (h, w, torch.zeros(w.shape[0]))]
    leaves[2] = leaves[2].detach().to(leaves[0].dtype).requires_grad_()
    execution = Execution(backend=backend, sparsity=rule, on_sparsity=told.append if rule else None)
    batch = from_packed(y, torch.arange(h.shape[0] + 1), roles=1)
    logp = token_logprob(leaves[0], leaves[1], batch, head=HeadOptions(bias=leaves[2], **head), execution=execution)
    (logp * c.to(logp.dtype)).sum().backward()
    return [x.grad.double() for x in leaves], told[0] if told else None


def case(kind="peaked", seed=0, dtype=torch.float32):
    h, w, y = head_case(N, D, V, kind=kind, dtype=dtype, seed=seed)
    c = torch.randn(N, generator=torch.Generator().manual_seed(seed)) / N
    return h, w, y, c


def flat():
    """Every column has the same mass: no list is worth having."""
    h, w, y, c = case()
    return torch.zeros_like(h), w, y, c


def one_row_unlike_the_others():
    h, w, y, c = case("peaked")
    h[17] = 0.0
    return h, w, y, c


def just_under():
    """One column holds nearly all, the others share a mass of twice the budget."""
    h, w, y, c = case()
    h = torch.zeros_like(h)
    h[:, 0] = 1.0
    w = torch.zeros_like(w)
    w[0, 0] = math.log((V - 2) * 0.9 / 0.1)
    return h, w, torch.full_like(y, 1), c


def one_heavy_coefficient():
    h, w, y, c = case("trained")
    return h, w, y, torch.where(torch.arange(N) == 3, 1.0, 1e-6 * c)


def repeated_columns():
    h, w, y, c = case()
    return h, w[:1].expand(V, D).contiguous(), y, c


INPUTS = {
    "peaked": case, "trained": lambda: case("trained"), "flat": flat, "one row unlike": one_row_unlike_the_others,
    "just under": just_under, "one heavy coefficient": one_heavy_coefficient,
    "one and the same row of w": repeated_columns,
    "no coefficient": lambda: (*case()[:3], torch.zeros(N)),
    "a huge head": lambda: (case()[0], 30 * case()[1], *case()[2:]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "name", "budget", "tau"),
    few_in_the_interpreter(
        INPUTS, ["row", "block"], [1e-4, 0.01, 0.2], quick=lambda *own: own == ("one row unlike", "row", 0.01)
    ),
    indirect=["backend"],
)
def test_certified_is_within_its_bounds(name, budget, tau, backend):
    """The distance from the same backend's exact gradient is at most what is reported, and the rounding of both."""
    h, w, y, c = INPUTS[name]()
    exact, _ = gradients(h, w, y, c, backend)
    made, told = gradients(h, w, y, c, backend, Certified(tau=tau, budget=budget))
    norms = (torch.linalg.vector_norm, torch.linalg.vector_norm, lambda x: x.abs().sum())
    for got, want, norm, bound in zip(made, exact, norms, told[-3:], strict=True):
        rounding = 3e-6 * float(norm(want)) + 1e-12
        assert float(norm(got - want)) <= float(bound) + rounding
    assert 0 <= float(told.kept) <= 1 and 0 <= float(told.exact) <= 1
    assert float(told.dropped_mean) >= 0
    if budget == "row":
        assert float(told.dropped_max) <= tau * (1 + 1e-5)


def test_a_budget_of_nothing_is_the_exact_path_bit_for_bit(backend):
    h, w, y, c = case("trained")
    exact, _ = gradients(h, w, y, c, backend)
    made, told = gradients(h, w, y, c, backend, Certified(tau=0.0))
    assert all(torch.equal(a, b) for a, b in zip(made, exact, strict=True))
    assert told.kept == 1 and told.exact == 1 and told.d_weight == 0 and told.dropped_max == 0


def test_what_keeps_too_much_takes_the_exact_path_bit_for_bit(backend):
    h, w, y, c = flat()
    for rule in (Certified(tau=1e-3), Unbiased(theta=1e-6, seed=0)):
        exact, _ = gradients(h, w, y, c, backend)
        made, told = gradients(h, w, y, c, backend, rule)
        assert all(torch.equal(a, b) for a, b in zip(made, exact, strict=True))
        assert told.kept == 1 and told.exact == 1


SEEDS = 400
FALSE_ALARM = 1e-6  # of any one of the tests below, if the draws were truly random


@pytest.fixture(scope="module")
def drawn():
    """The gradients of many seeds, their exact gradient, and what each reported."""
    h, w, y, c = case("trained")
    exact, _ = gradients(h, w, y, c, "plain")
    made = [gradients(h, w, y, c, "plain", Unbiased(theta=0.5, seed=seed)) for seed in range(SEEDS)]
    return exact, [torch.stack(parts) for parts in zip(*(one for one, _ in made), strict=True)], [t for _, t in made]


@pytest.mark.parametrize("i", range(3), ids=["dh", "dw", "db"])
def test_the_mean_over_seeds_is_the_exact_gradient(drawn, i):
    """Along each of eight directions the seeds' deviations have the mean zero, by Student's test."""
    exact, made, told = drawn
    assert 0.1 < float(told[0].kept) < 0.5, "some columns are drawn, most are not"
    off = (made[i] - exact[i]).flatten(1)
    for direction in range(8):
        along = off @ torch.randn(off.shape[1], dtype=off.dtype, generator=torch.Generator().manual_seed(direction))
        assert stats.ttest_1samp(along.numpy(), 0.0).pvalue > FALSE_ALARM / 8


@pytest.mark.parametrize("i", range(3), ids=["dh", "dw", "db"])
def test_the_error_of_a_mean_falls_as_the_root_of_its_seeds(drawn, i):
    """Of means of k seeds, the mean square of the error is that of single ones over k, within its own spread."""
    exact, made, _ = drawn
    off = (made[i] - exact[i]).flatten(1)
    single = off.square().sum(1)
    for k in (4, 16, 50):
        means = off.view(SEEDS // k, k, -1).mean(1).square().sum(1)
        spread = float(means.std() / math.sqrt(SEEDS // k) + single.std() / math.sqrt(SEEDS) / k)
        assert abs(float(means.mean()) - float(single.mean()) / k) < 5.5 * spread


def test_the_reported_error_is_the_mean_square(drawn):
    """Of dh to the last digit of its spread; of dw and db it is a bound."""
    exact, made, told = drawn
    for i, name in enumerate(("d_hidden", "d_weight", "d_bias")):
        squares = (made[i] - exact[i]).flatten(1).square().sum(1)
        reported, spread = float(getattr(told[0], name)) ** 2, float(squares.std()) / math.sqrt(SEEDS)
        assert float(squares.mean()) < reported + 5.5 * spread
        if name == "d_hidden":
            assert abs(float(squares.mean()) - reported) < 5.5 * spread


def test_the_same_seed_gives_the_same_bits(backend):
    h, w, y, c = case("trained")
    first, again, other = (
        gradients(h, w, y, c, backend, Unbiased(theta=0.5, seed=seed))[0] for seed in (7, 7, 8)
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_backends_keep_the_same_columns(rule, backend):
    """Up to a column on the edge, whose sums are added in another order."""
    h, w, y, c = case("peaked")
    want, wanted = gradients(h, w, y, c, "plain", rule)
    got, told = gradients(h, w, y, c, backend, rule)
    assert float(told.kept) == pytest.approx(float(wanted.kept), abs=3e-3) and float(wanted.kept) < 0.4
    for a, b in zip(got, want, strict=True):
        assert float((a - b).norm()) < 2e-2 * float(b.norm())


@pytest.mark.parametrize(
    ("backend", "name", "dtype"),
    few_in_the_interpreter(RULES, DTYPES, quick=lambda name, dtype: (name, dtype) in QUICK), indirect=["backend"],
)  # fmt: skip
def test_every_dtype_and_head(name, dtype, backend):
    rule = RULES[name]
    h, w, y, c = case("peaked", dtype=dtype)
    head = {"softcap": 20.0, "logit_scale": 1.2}
    exact, _ = gradients(h, w, y, c, backend, **head)
    made, told = gradients(h, w, y, c, backend, rule, **head)
    reported = [float(x) for x in told[-3:]]
    for got, want, bound in zip(made, exact, reported, strict=True):
        rounding = 4 * torch.finfo(dtype).eps * float(want.norm())
        assert float((got - want).norm()) <= (1 if isinstance(rule, Certified) else 4) * bound + rounding
    assert float(told.kept) < 0.6


def test_draws_are_even_and_do_not_depend_on_each_other():
    """By Kolmogorov and Smirnov, each and over neighbours, seeds and blocks."""
    V, device = 20000, torch.device("cpu")
    made = {(s, b): draws(s, b, V, device).double() for s in (0, 1, 1 << 40) for b in (0, 128, 1 << 33)}
    for one in made.values():
        assert float(one.min()) >= 0 and float(one.max()) < 1
        assert stats.kstest(one.numpy(), "uniform").pvalue > FALSE_ALARM
        assert abs(float(torch.corrcoef(torch.stack([one[1:], one[:-1]]))[0, 1])) < 5.5 / math.sqrt(V)
    together = torch.corrcoef(torch.stack(list(made.values()))) - torch.eye(len(made), dtype=torch.float64)
    assert float(together.abs().max()) < 5.5 / math.sqrt(V)


def test_a_probability_is_a_power_of_two():
    x = torch.tensor([0.0, 1e-30, 0.24, 0.25, 0.26, 0.5, 0.7, 1.0, 3.0])
    want = torch.tensor([0.0, 2.0**-24, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 4.0])
    assert torch.equal(choice._power_of_two_above(x), want)


@pytest.mark.parametrize(
    ("backend", "name"), few_in_the_interpreter(RULES, quick=lambda name: name == "block"), indirect=["backend"]
)
def test_preference_loss_reports(name, backend):
    """The loss is the exact one; a saturated pair keeps next to nothing; anchors and several chunks take part."""
    rule = RULES[name]
    h, w, y = head_case(96, D, V, kind="peaked")
    batch = from_packed(y, torch.arange(0, 97, 16))
    leaf = h.clone().requires_grad_()
    reports = {}
    for name, own in (("exact", None), ("sparse", rule)):
        execution = Execution(backend=backend, sparsity=own, workspace_bytes=1 << 20)
        reports[name] = preference_loss(leaf, w.requires_grad_(), batch, EXPO, execution=execution)
    assert torch.equal(reports["exact"].loss, reports["sparse"].loss) and reports["exact"].sparsity is None
    told = reports["sparse"].sparsity
    assert 0 < float(told.kept) < 0.7 and float(told.dropped_mean) > 0 and not told.kept.requires_grad
    grads = [torch.autograd.grad(out.loss, (leaf, w), retain_graph=True) for out in reports.values()]
    for a, b, bound in zip(*grads, (told.d_hidden, told.d_weight), strict=True):
        assert 0 < float((a - b).norm()) < 4 * float(bound)


def test_a_saturated_pair_costs_nothing():
    backend = "plain"
    h, w, y, c = case("trained")
    one_block = torch.where(torch.arange(N) < crowd.BLOCK, c, 1e-9 * c)
    for rule in RULES.values():
        _, told = gradients(h, w, y, one_block, backend, rule)
        assert 0 < float(told.kept) * N / crowd.BLOCK < 1 and float(told.exact) <= crowd.BLOCK / N


def test_repeated_rows_are_within_their_bound(backend):
    """One row of hidden predicts several tokens: their distances add up in its gradient."""
    h, w, y, c = case("trained")
    rows = torch.arange(N) // 4
    made = {}
    told = []
    for name, rule in (("exact", None), ("sparse", RULES["row"])):
        leaf = h[: N // 4].clone().requires_grad_()
        execution = Execution(backend=backend, sparsity=rule, on_sparsity=told.append if rule else None)
        batch = from_packed(y, torch.arange(N + 1), rows=rows, roles=1)
        wide = w.clone().requires_grad_()
        (token_logprob(leaf, wide, batch, execution=execution) * c).sum().backward()
        made[name] = leaf.grad
    assert 0 < float((made["sparse"] - made["exact"]).norm()) <= float(told[0].d_hidden)


def test_a_frozen_head_leaves_out_of_the_hidden_gradient(backend):
    h, w, y, _ = case("peaked")
    told, made = [], []
    for rule in (None, RULES["row"]):
        leaf = h.clone().requires_grad_()
        execution = Execution(backend=backend, sparsity=rule, on_sparsity=told.append if rule else None)
        seq = sequence_logprob(leaf, w.detach(), from_packed(y, torch.tensor([0, 40, N]), roles=1), execution=execution)
        seq.sum().backward()
        made.append(leaf.grad)
    assert 0 < float((made[0] - made[1]).norm()) <= float(told[0].d_hidden) * (1 + 1e-5)


def test_a_value_that_is_not_finite_stays_one(backend):
    h, w, y, c = case("peaked")
    h[5] = float("nan")
    exact, _ = gradients(h, w, y, c, backend)
    made, told = gradients(h, w, y, c, backend, RULES["row"])
    assert torch.equal(made[0].isnan(), exact[0].isnan()) and torch.equal(made[1].isnan(), exact[1].isnan())
    assert float(told.exact) > 0


def test_under_a_compiler():
    """One graph, the same draws, the same report."""
    torch._dynamo.reset()
    h, w, y = head_case(64, 16, 300, kind="peaked")
    batch, execution = (
        from_packed(y, torch.arange(0, 65, 16)),
        Execution(sparsity=RULES["unbiased"], skip_inactive=False),
    )

    def loss(h):
        return preference_loss(h, w, batch, EXPO, execution=execution)

    made = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = h.clone().requires_grad_()
        out = function(leaf)
        out.loss.backward()
        made.append((leaf.grad, out.sparsity.kept))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True)) and 0 < float(made[0][1]) < 1


@pytest.mark.parametrize(
    ("call", "message"),
    {
        "tau": (lambda: Certified(tau=1.0), "want tau from 0 to below 1, got 1.0"),
        "tau not a number": (lambda: Certified(tau="much"), "want tau from 0"),
        "budget": (lambda: Certified(tau=0.1, budget="rows"), "budget one of row, block, got 'rows'"),
        "theta": (lambda: Unbiased(theta=0.0, seed=1), "want theta a positive number, got 0.0"),
        "seed": (lambda: Unbiased(theta=0.1, seed=-1), "want seed from 0"),
        "seed not whole": (lambda: Unbiased(theta=0.1, seed=1.5), "want seed from 0"),
        "a number": (
            lambda: token_logprob(*case()[:2], TOKENS, execution=Execution(sparsity=0.1)), "want sparsity None",
        ),
        "nobody to report on": (
            lambda: token_logprob(*case()[:2], TOKENS, execution=Execution(on_sparsity=print)), "got no rule to report",
        ),
        "no function": (
            lambda: token_logprob(*case()[:2], TOKENS, execution=Execution(sparsity=RULES["row"], on_sparsity=3)),
            "want on_sparsity a function",
        ),
    }.values(),
)  # fmt: skip
def test_what_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


TOKENS = from_packed(case()[2], torch.arange(N + 1), roles=1)
