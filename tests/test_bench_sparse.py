"""The bench of the sparse gradient: checked before it is timed, and its page."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import bench_sparse, own_head
from benchmarks.cases import HeadCase, head_case, observed
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


def test_a_head_of_ones_own(tmp_path):
    """A file's rows as they come, at an entropy that is asked for, and what a file may not hold."""
    case = head_case(300, 16, 50, entropy=2.0, dtype=torch.float32)
    path = tmp_path / "head.safetensors"
    save_file(case._asdict(), path)
    whole = own_head.read_head(path)
    plain = own_head.own_case(whole, 256, None, torch.float32, "cpu")
    assert torch.equal(plain.h, case.h[:256]) and torch.equal(plain.w, case.w) and torch.equal(plain.y, case.y[:256])
    sharper = own_head.own_case(whole, 300, 1.0, torch.float32, "cpu")
    assert float(observed(sharper).entropy.mean()) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ValueError, match="want at most the file's 300 rows, got 301"):
        own_head.own_case(whole, 301, None, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"want an entropy of .* nats here, got 9"):
        own_head.own_case(whole, 300, 9.0, torch.float32, "cpu")
    for parts in (
        {"h": case.h, "w": case.w},
        {**case._asdict(), "y": case.y + 50},
        {**case._asdict(), "y": case.h.clone()},
    ):
        save_file(parts, path)
        with pytest.raises(ValueError, match="read_head: want h"):
            own_head.read_head(path)


def test_the_bench_takes_such_a_head(tmp_path, capsys):
    case = head_case(128, 32, 600, entropy=2.0, dtype=torch.float32)
    save_file(case._asdict(), tmp_path / "head.safetensors")
    saved = tmp_path / "rows.jsonl"
    bench_sparse.main([
        "--head", str(tmp_path / "head.safetensors"), "--tokens", "128", "--rounds", "1", "--dtype", "fp32",
        "--ways", "unbiased, 2^-6", "--save", str(saved),
    ])  # fmt: skip
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    name = tmp_path.name
    assert {row["workload"] for row in rows} == {name} and f"V 600, {name}, fp32" in capsys.readouterr().out
    page = report.page(rows)
    assert f"V 600, {name}, fp32" in page and "--save" not in page and str(tmp_path) in page
    with pytest.raises(SystemExit):
        bench_sparse.main(["--head", str(tmp_path / "head.safetensors"), "--shapes", "32x600"])
    assert "want no --shapes" in capsys.readouterr().err
