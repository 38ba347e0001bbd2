"""The benchmarks: honest workloads, a gate before the clock, and figures that carry what they need to be believed."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import bench_head, measure, providers, report
from benchmarks.cases import KINDS, head_case, pair_labels

SMALL = ["--model", "tiny", "--tokens", "64", "--pairs", "2", "--rounds", "2", "--warmup", "0", "--no-memory"]


@pytest.fixture(autouse=True)
def _nondeterministic():
    torch.use_deterministic_algorithms(False)  # filling memory with NaN is not traceable


@pytest.mark.parametrize("entropy", [1.0, 2.0, 4.0])
def test_trained_logits_have_the_entropy_they_state(entropy):
    h, w, y = head_case(256, 64, 2000, entropy=entropy)
    logp = torch.log_softmax(h @ w.T, -1)
    assert float(-(logp.exp() * logp).sum(-1).mean()) == pytest.approx(entropy, rel=0.25)
    nll = -logp.gather(1, y[:, None]).mean()
    assert float(nll) == pytest.approx(entropy, rel=0.35), "labels are the model's own draws"


def test_peaked_logits_reach_both_ends():
    h, w, y = head_case(256, 64, 2000, kind="peaked")
    nll = -torch.log_softmax(h.double() @ w.double().T, -1).gather(1, y[:, None])[:, 0]
    far = torch.arange(256) % 4 == 3
    assert float(nll[~far].min()) < 1e-6 and float(nll[~far].max()) < 1
    assert float(nll[far].min()) > 45 and 110 < float(nll.max()) < 180  # the wrong labels have logits of their own


@pytest.mark.parametrize("kind", KINDS)
def test_cases_are_reproducible(kind):
    a, b = head_case(16, 32, 100, kind=kind, seed=3), head_case(16, 32, 100, kind=kind, seed=3)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("masked", [0.0, 0.5, 0.8])
def test_masked_share(masked):
    labels = pair_labels(torch.zeros(64 * 200, dtype=torch.long), 32, masked=masked)
    assert float((labels == -100).float().mean()) == pytest.approx(masked, abs=0.05)


@pytest.mark.parametrize("mode", providers.MODES)
def test_bench_head_prints_and_saves(mode, tmp_path, capsys):
    file = tmp_path / "results" / "head.jsonl"
    bench_head.main([*SMALL, "--mode", mode, "--providers", "naive", "plain", "--save", str(file)])
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["provider"] for r in records] == ["naive", "plain"]
    for r in records:
        assert r["ms"] > 0 and r["low_ms"] <= r["ms"] <= r["high_ms"] and r["scored"] == 64
        assert {"device", "torch", "commit", "date", "dtype", "entropy"} <= r.keys()
        assert len(r["error"]) == 1 + sum(providers.MODES[mode])
    assert "plain" in capsys.readouterr().out
    assert report.table(records).count("\n") == 3 and "not measured" in report.table(records)


def test_a_wrong_provider_is_never_timed(monkeypatch):
    def wrong(case, workspace_bytes=None):
        return providers.naive(case) * 1.01

    monkeypatch.setitem(providers.PROVIDERS, "plain", wrong)
    monkeypatch.setattr(measure, "interleaved", lambda *a, **k: pytest.fail("a wrong provider was timed"))
    with pytest.raises(SystemExit, match=r"plain: error of loss .* not timed"):
        bench_head.main([*SMALL, "--providers", "plain"])


def test_interleaving_and_quartiles():
    calls = []
    times = measure.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=0)
    assert calls == ["a", "b", *["a", "b"] * 3]
    assert all(t.low <= t.median <= t.high for t in times.values())


def test_arguments_that_make_no_sense():
    for bad in (["--tokens", "63"], ["--masked", "1.0"], ["--mode", "nothing"]):
        with pytest.raises(SystemExit):
            bench_head.parse([*SMALL, *bad])
