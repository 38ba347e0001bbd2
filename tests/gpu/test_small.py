"""Every kernel once, at sizes that compute-sanitizer gets through: ragged in every dimension, tiles that end outside.

make gpu-check runs these under memcheck and racecheck; the numbers are test_card.py's business, these only must be
finite and right to a few per cent.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import head_case
from expo_kernels import Execution, HeadOptions, token_stats
from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.kernels.contract import Head
from expo_kernels.kernels.triton import product, tuning
from expo_kernels.kernels.triton.head import fused, scoring
from expo_kernels.kernels.triton.tuning import card_for
from expo_kernels.layout import from_packed
from expo_kernels.objectives import make_objective

N, D, V = 37, 72, 331
ROUTES = {"library": {"fused": False}, "fused": {"fused": True, "persistent": None}, "descriptors": {"fused": True}}


@pytest.fixture
def row(request, card, monkeypatch):
    name = card_for(card).name
    if request.param == "descriptors" and tuning.CARDS[name].persistent is None:
        pytest.skip("no descriptors on this card")
    monkeypatch.setitem(tuning.CARDS, name, tuning.CARDS[name]._replace(**ROUTES[request.param]))
    return tuning.CARDS[name]


@pytest.mark.parametrize("row", ROUTES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=lambda d: str(d)[6:])
def test_a_step(dtype, row, card):
    """Scores, sums, EXPO's loss, all gradients; rows left out, so that E' is gathered in strips; statistics."""
    h, w, y = (x.to(card) for x in head_case(N, D, V, dtype=dtype, kind="peaked"))
    hidden, weight = h.clone().requires_grad_(), w.clone().requires_grad_()
    bias = torch.zeros(V, device=card, dtype=dtype).requires_grad_()
    # the second pair has an empty response: it is inactive, and its rows stay out of the gradient
    batch = from_packed(y.cpu(), torch.tensor([0, 9, 20, 20, N])).to(card)
    out = preference_loss(
        hidden, weight, batch, make_objective("expo_comp", lam=0.3, temperature=1e3), head=HeadOptions(bias=bias),
        execution=Execution(backend="triton", workspace_bytes=1 << 16), stats=("entropy",),
    )  # fmt: skip
    out.loss.backward()
    for gradient in (hidden.grad, weight.grad, bias.grad):
        assert bool(gradient.isfinite().all()) and bool(gradient.any())


@pytest.mark.parametrize("row", ROUTES, indirect=True)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_scores(softcap, row, card):
    """At rows that begin at vectors, where descriptors are taken, and at rows that do not."""
    for wide, high in ((64, 320), (D - 1, V)):
        h, w, y = (x.to(card) for x in head_case(N, wide, high, dtype=torch.bfloat16))
        e = torch.zeros(N, -(-high // 16) * 16, device=card, dtype=torch.bfloat16)[:, :high]
        made = scoring.score_rows(h, y, Head(w, None, softcap, 1.0), e, 1 << 20, True)
        z = h.double() @ w.double().T
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        exact = torch.log_softmax(z, -1).gather(1, y[:, None])[:, 0]
        assert torch.allclose(made.logp.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=lambda d: str(d)[6:])
def test_own_products(dtype, add, card):
    a, b = torch.randn(V, N, device=card).to(dtype).T, torch.randn(V, D, device=card).to(dtype)
    out = torch.ones(N, D, device=card)
    product.own_product(a, b, out, card_for(card), add=add)
    exact = a.double() @ b.double() + add
    assert float((out.double() - exact).norm() / exact.norm()) < 1e-3


def test_statistics(card):
    h, w, y = (x.to(card) for x in head_case(N, D, V, dtype=torch.float32))
    batch = from_packed(y.cpu(), torch.tensor([0, N]), roles=1).to(card)
    stats = token_stats(h, w, batch, execution=Execution(backend="triton", workspace_bytes=1 << 18))
    assert bool(stats.logp.isfinite().all()) and bool(stats.entropy.isfinite().all())


def test_the_programs_of_one_tile_and_of_many(card):
    """The last row block and the last column block hold one row and one column each."""
    tiles = card_for(card).small
    n, high = tiles.rows + 1, tiles.columns + 1
    h, w, y = (x.to(card) for x in head_case(n, 40, high, dtype=torch.float32))
    partials = fused.new_partials(h, high, tiles, True)
    offset = torch.zeros(n, device=card)
    fused.head_tiles(h, y, Head(w, None, None, 1.0), offset, None, None, partials, tiles)
    total = (h.double() @ w.double().T).exp().sum(1)
    found = partials.rest.double().sum(1) + partials.label_exp.double()
    assert torch.allclose(found, total, rtol=1e-4)
