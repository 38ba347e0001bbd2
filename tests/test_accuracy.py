"""The rule of error on flat, trained-like and peaked logits: nll, dh, dw, db of the token operation, loss of pairs."""

from __future__ import annotations

import math

import pytest
import torch
from support import DTYPE_IDS, DTYPES, SEEDS, Errors, fused, padded_case, rounding_floor, truth, with_reference
from torch import Tensor

from benchmarks.cases import KINDS, head_case
from expo_kernels import Execution, HeadOptions, reference, token_logprob, token_stats
from expo_kernels.layout import from_packed
from expo_kernels.objectives import make_objective

N, D, V = 72, 40, 1003


def token_case(kind: str, dtype: torch.dtype, seed: int):
    """h, w, bias, batch, c: coefficients from 1 down to 1e-12."""
    h, w, y = head_case(N, D, V, kind=kind, dtype=dtype, seed=seed)
    bias = (0.1 * torch.randn(V, generator=torch.Generator().manual_seed(seed))).to(dtype)
    c = torch.logspace(0, -12, N, dtype=torch.float64)[torch.randperm(N)]
    return h, w, bias, from_packed(y, torch.arange(N + 1), roles=1), c


def gradients(function, h, w, bias, batch, c, dtype) -> dict[str, Tensor]:
    leaves = [x.to(dtype).detach().clone().requires_grad_() for x in (h, w, bias)]
    logp = function(leaves[0], leaves[1], batch, head=HeadOptions(bias=leaves[2]))
    (logp * c.to(logp.dtype)).sum().backward()
    names = ("nll", "d_hidden", "d_weight", "d_bias")
    return dict(zip(names, (-logp.detach(), *(x.grad for x in leaves)), strict=True))


def ours(h, w, batch, head):
    return token_logprob(h, w, batch, head=head, execution=Execution(workspace_bytes=1 << 19))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_tokens(kind, dtype):
    errors = Errors()
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for seed in SEEDS:
        case = token_case(kind, dtype, seed)
        exact = gradients(reference.token_logprob, *case, torch.float64)
        plain = gradients(reference.token_logprob, *case, dtype)
        made = gradients(ours, *case, dtype)
        floor = 2 * eps * float(1 + (case[0].double() @ case[1].double().T).abs().max())
        for name in exact:
            errors.add(name, made[name], plain[name], exact[name], floor)
    errors.check()


@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_small_coefficients_keep_their_relative_precision(dtype):
    """Rows with coefficients down to 1e-12 and nll of 60 to 130: dh is as precise, row for row, as with c = 1."""
    h, w, bias, batch, c = token_case("peaked", dtype, 0)
    leaf = h.detach().clone().requires_grad_()
    head = HeadOptions(bias=bias)
    logp = ours(leaf, w, batch, head)
    (unit,) = torch.autograd.grad(logp.sum(), leaf, retain_graph=True)
    # fp16 itself ends at 6e-8: there the loss scaler's factor arrives before the one rounding, as in training
    scaler = 1e12 if dtype == torch.float16 else 1.0
    (small,) = torch.autograd.grad((logp * (c * scaler).to(logp.dtype)).sum(), leaf)
    want = unit.double() * (c * scaler)[:, None]
    top, tiny = want.abs().amax(1), 100 * torch.finfo(dtype).tiny
    fits = (top < torch.finfo(dtype).max) & (top > tiny) & (unit.abs().amax(1) > tiny)
    assert int(fits.sum()) > N // 8
    off = (small.double() - want).norm(dim=1) / want.norm(dim=1)
    assert float(off[fits].max()) < 2 * torch.finfo(dtype).eps


def test_certain_labels_keep_their_gradient():
    """p_y = 1 - 1e-6 and closer: nll and dh to fp32's relative precision, where 1 - p_y would have lost them."""
    D, V = 16, 50
    w = torch.zeros(V, D)
    w[:, 0] = -1.0
    w[3, 0] = 1.0
    lift = torch.tensor([6.0, 9.0, 12.0, 20.0, 30.0])
    h = torch.zeros(5, D)
    h[:, 0] = lift / 2
    h.requires_grad_()
    logp = token_logprob(h, w, from_packed(torch.full((5,), 3), torch.arange(6), roles=1))
    logp.sum().backward()
    rest = (V - 1) * torch.exp(-lift.double())
    assert torch.allclose(-logp.double(), torch.log1p(rest), rtol=1e-6, atol=0)
    assert torch.allclose(h.grad[:, 0].double(), 2 * rest / (1 + rest), rtol=1e-6, atol=0)


@pytest.mark.parametrize("gap", [0.0, 60.0, 130.0, 1e4])
def test_improbable_labels(gap):
    """nll up to 1e4 nats: no overflow of rest / E_y, no underflow of the gradient."""
    w = torch.tensor([[1.0] + [0.0] * 15, [0.0] * 16])
    h = torch.zeros(1, 16)
    h[0, 0] = gap
    h.requires_grad_()
    logp = token_logprob(h, w, from_packed(torch.tensor([1]), torch.tensor([0, 1]), roles=1))
    logp.sum().backward()
    nll = gap + math.log1p(math.exp(-gap))
    assert float(-logp.detach()) == pytest.approx(nll, rel=1e-6)
    assert float(h.grad[0, 0]) == pytest.approx(-1 / (1 + math.exp(-gap)), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["expo_reg", "expo_comp"])
@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_pairs(kind, variant, dtype):
    objective = make_objective(variant, lam=0.3, temperature=50.0)
    errors = Errors()
    for seed in SEEDS:
        case = padded_case(6, 12, D, V, dtype=dtype, kind=kind, seed=seed, bias=True)
        case = with_reference(case, objective, seed)
        exact, plain, made = truth(case, objective), truth(case, objective, dtype), fused(case, objective, 1 << 19)
        for name in exact:
            errors.add(name, made[name], plain[name], exact[name], rounding_floor(case))
    errors.check()


@pytest.mark.parametrize("dtype", DTYPES, **DTYPE_IDS)
def test_entropy_and_argmax(dtype):
    for kind in KINDS:
        h, w, bias, batch, _ = token_case(kind, dtype, 0)
        found = token_stats(h, w, batch, head=HeadOptions(bias=bias), execution=Execution(workspace_bytes=1 << 19))
        logp = reference.log_softmax(h.double(), w.double(), batch, HeadOptions(bias=bias.double()))
        exact = -(logp.exp() * logp).sum(-1)
        eps = torch.finfo(found.entropy.dtype).eps
        # z carries eps |z|, and entropy moves with it by at most |z - mean z| p
        assert torch.allclose(found.entropy.double(), exact, rtol=0, atol=float(eps * 40 * (1 + logp.abs().max())))
        clear = logp.topk(2).values.diff().abs()[:, 0] > 1e-3
        assert torch.equal(found.is_argmax[clear], (logp.argmax(-1) == batch.labels)[clear])
