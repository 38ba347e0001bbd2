"""What makes Triton's gradient, in the interpreter: products, labels, backprop; and the workspace that they take."""

from __future__ import annotations

import math

import pytest
import torch
from support import DTYPE_IDS

from expo_kernels.kernels.triton import budget, ops, product, tuning
from expo_kernels.kernels.triton.head.labels import scatter_labels
from expo_kernels.kernels.triton.tuning import Tiles


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
