"""The bench of the sparse gradient: checked before it is timed, and its page."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import bench_sparse
from benchmarks.cases import HeadCase, head_case
from benchmarks.report import sparsity as report
from tools import marked

WAYS = ["certified, row 5 %", "certified, block 0.5 %", "unbiased, 2^-6"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "rows.jsonl"
    bench_sparse.main([
        "--shapes", "32x600", "--tokens", "128", "--entropies", "1.0", "2.5", "--rounds", "2", "--dtype", "fp32",
        "--ways", *WAYS, "--save", str(path),
    ])  # fmt: skip
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_way_is_timed_beside_the_products(rows):
    assert [row["way"] for row in rows] == 2 * ["exact", *WAYS, "tiles of Cut CE, 2^-12"]
    for row in rows:
        assert row["D"] == 32 and row["commit"]
        if row["way"].startswith("tiles"):
            assert "ratio" not in row and 0 < row["kept"] <= 1
            continue
        assert row["ratio"] == pytest.approx(row["s"] / row["products_s"]) and row["rounds"] == 2
        if row["way"] == "exact":
            assert row["kept"] == 1 and row["dw"] == 0
        else:
            assert 0 < row["kept"] <= 1 and row["dw_abs"] <= 4 * row["dw_bound"] + 1e-5


def test_what_is_beyond_its_bound_is_not_timed():
    row = {"dh": 1.0, "dh_abs": 1.0, "dh_bound": 0.5, "dw": 0.1, "dw_abs": 0.1, "dw_bound": 0.5}
    out = bench_sparse.LossOutput(*[None] * 7, sparsity=object())
    with pytest.raises(RuntimeError, match=r"want dh within 0\.505 of the exact one, got 1"):
        bench_sparse.check("certified, row", row, out)
    bench_sparse.check("unbiased", row, out)


def test_the_spread_of_sequences_is_autograds():
    """Against each sequence's own gradient in plain torch."""
    case = head_case(64, 8, 40, dtype=torch.float32)
    parts = []
    for h, y in zip(case.h.split(4), case.y.split(4), strict=True):
        w = case.w.clone().requires_grad_()
        torch.nn.functional.cross_entropy(h @ w.T, y).backward()
        parts.append(w.grad / 16)
    dw = torch.stack(parts).sum(0)
    want = (16 / 15 * sum(float((p - dw / 16).norm()) ** 2 for p in parts)) ** 0.5
    assert bench_sparse.spread_of_sequences(case, "plain", dw) == pytest.approx(want, rel=1e-4)


def test_tiles_that_are_filtered():
    """256 columns, of which the first 128 hold everything but a thousandth of the last 128's threshold."""
    w = torch.zeros(256, 1)
    w[128:] = -30.0
    kept, dropped = bench_sparse.filtered_tiles(HeadCase(torch.ones(128, 1), w, torch.zeros(128, dtype=torch.long)))
    assert kept == 0.5 and 0 < dropped < 1e-12


def test_lists_before_the_product_are_looser():
    early = bench_sparse.early_lists(head_case(256, 32, 600, dtype=torch.float32), threshold=2.0**-8, strip=50)
    assert 0 < early["true"] <= early["label and strip"] <= early["label"] <= 1


def test_the_page_and_what_is_wanted(rows, tmp_path, monkeypatch):
    text = report.page(rows)
    assert text.count("| exact |") == 2 and text.count("Wanted: under") == 2
    own = [{"way": "unbiased, a", "ratio": 0.4, "of_noise": 1e-2, "entropy": 1.2, "dropped_mean": 0.1}]
    assert report.verdict(own).endswith("**not met**.")
    own.append({"way": "unbiased, b", "ratio": 0.45, "of_noise": 1e-4, "entropy": 1.2, "dropped_mean": 0.1})
    assert report.verdict(own) == "Wanted: under 0.50. Least, leaving out next to nothing: 0.45 (unbiased, b): met."
    assert report.drawn(rows).axes


def test_the_committed_page_is_what_the_committed_rows_give():
    rows = [json.loads(line) for line in report.ROWS.read_text().splitlines()]
    assert marked.read(marked.DOCS / "sparsity.md", "speed") == report.page(rows)
