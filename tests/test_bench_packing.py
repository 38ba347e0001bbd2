"""What packing saves: counted with the trainer's own batches, and never timed where a way computes something else."""

from __future__ import annotations

import pytest

from benchmarks import bench_packing
from benchmarks.records import read

SMALL = ["--D", "64", "--V", "50", "--layers", "1", "--pairs", "2", "--length", "16", "--rounds", "1", "--warmup", "0"]


def test_tokens_that_are_saved_are_the_figures_of_the_page():
    """docs/training.md says them of micro-batches of eight pairs."""
    shares = {}
    for name in bench_packing.DATA:
        read = bench_packing.counted(name, 8)
        shares[name] = [round(read[way] / read["padded"], 2) for way in ("packed", "shared")]
    assert shares == {"HH-like": [0.42, 0.30], "UltraFeedback-like": [0.40, 0.34]}


def test_it_prints_and_saves(tmp_path, capsys):
    file = tmp_path / "packing.jsonl"
    bench_packing.main([*SMALL, "--shares", "0", "0.5", "--save", str(file)])
    records = read(file)
    timed = [r for r in records if r.state == "timed"]
    assert len(records) == 2 * 3 + 2 * 3 and all(r.ms > 0 and r.low_ms <= r.ms <= r.high_ms for r in timed)
    assert [r.tokens for r in timed] == [64, 64, 62, 64, 64, 48], "a prompt has at least a token"
    assert "shared (mask)" in capsys.readouterr().out


def test_a_way_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(bench_packing.measure, "interleaved", lambda *a, **k: pytest.fail("timed"))
    with pytest.raises(SystemExit, match="shared: want loss and gradient norm"):
        bench_packing.agree({"padded": lambda: (1.0, 2.0), "shared": lambda: (1.0, 2.1)})
