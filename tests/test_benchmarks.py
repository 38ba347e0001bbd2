"""The benches of the head: a gate before the clock, and figures that carry what they need to be believed."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch

from benchmarks import accuracy, bench_head, bench_memory, bench_products, bench_scaling, measure
from benchmarks.providers import MODES, PROVIDERS
from benchmarks.records import Record, read

SMALL = ["--model", "tiny", "--tokens", "64", "--pairs", "2", "--dtype", "fp32"]
QUICK = ["--rounds", "2", "--warmup", "0"]
HEAD = [*SMALL, *QUICK, "--no-memory"]
PAIR = ["--providers", "naive", "plain"]


@pytest.fixture(autouse=True)
def _nondeterministic():
    torch.use_deterministic_algorithms(False)  # filling memory with NaN is not traceable


@pytest.fixture
def _never_timed(monkeypatch):
    monkeypatch.setattr(measure, "taken_turns", lambda *a, **k: pytest.fail("a wrong provider was timed"))


def change(monkeypatch, name: str, **fields) -> None:
    monkeypatch.setitem(PROVIDERS, name, dataclasses.replace(PROVIDERS[name], **fields))


def too_large(case, workspace_bytes=None):
    return PROVIDERS["naive"].loss(case) * 1.01


@pytest.mark.parametrize("mode", MODES)
def test_bench_head_prints_and_saves(mode, tmp_path, capsys):
    file = tmp_path / "results" / "head.jsonl"
    bench_head.main([*HEAD, "--mode", mode, "--masked", "0.5", "--entropy", "3", *PAIR, "--save", str(file)])
    records = read(file)
    assert [r.provider for r in records] == ["naive", "plain"]
    for r in records:
        assert 0 < r.low_ms <= r.ms <= r.high_ms and r.state == "timed" and r.rounds == 2
        assert r.ratio == pytest.approx(r.ms / r.products_ms) and len(r.error) == 1 + sum(MODES[mode])
        assert r.tflops == pytest.approx(len(r.error) * 2 * r.scored * 64 * 1000 / r.ms / 1e9)
        assert (r.D, r.V, r.tokens, r.pairs, r.mode, r.kind, r.dtype) == (64, 1000, 64, 2, mode, "trained", "fp32")
        assert 20 <= r.scored <= 44 and r.entropy == pytest.approx(3, rel=0.3) and r.nll == pytest.approx(3, rel=0.5)
        assert r.command.startswith("python -m benchmarks.bench_head --model tiny") and r.peak_mib is None
    shown = capsys.readouterr().out
    assert "plain " in shown and f"mode {mode}" in shown and "error of loss, dh, dw" in shown


def test_a_wrong_one_of_ours_is_never_timed_and_fails_the_bench(monkeypatch, _never_timed, tmp_path, capsys):
    file = tmp_path / "head.jsonl"
    change(monkeypatch, "plain", loss=too_large)
    with pytest.raises(SystemExit, match=r"plain: error of loss .* naive's .*; not timed"):
        bench_head.main([*HEAD, "--providers", "plain", "--save", str(file)])
    (record,) = read(file)
    assert (record.state, record.ms) == ("wrong", None) and record.error[0] == pytest.approx(0.01, rel=0.1)
    assert "wrong: error of loss" in capsys.readouterr().out


def test_a_wrong_or_missing_peer_is_shown_and_the_others_are_timed(monkeypatch, tmp_path, capsys):
    file = tmp_path / "head.jsonl"
    change(monkeypatch, "torch-linear-ce", loss=too_large, missing=lambda case: None)
    change(monkeypatch, "trl", missing=lambda case: "there is no TRL")
    names = ["torch-linear-ce", "trl", "plain"]
    bench_head.main([*HEAD, "--providers", *names, "--save", str(file)])
    assert [(r.provider, r.state) for r in read(file)] == list(zip(names, ["wrong", "missing", "timed"], strict=True))
    shown = capsys.readouterr().out
    assert "trl                     missing: there is no TRL" in shown and "want at most 4 x naive's" in shown


def test_who_fails_on_the_whole_workload_only_is_missing_there(monkeypatch, tmp_path):
    """For want of memory, for instance."""

    def small_only(case, workspace_bytes=None):
        if case.batch.rows.numel() > 256:
            raise MemoryError("more than there is")
        return PROVIDERS["naive"].loss(case)

    file = tmp_path / "head.jsonl"
    change(monkeypatch, "trl", loss=small_only, missing=lambda case: None)
    bench_head.main([*HEAD, "--tokens", "512", "--providers", "trl", "naive", "--save", str(file)])
    trl, naive = read(file)
    assert (trl.state, trl.reason, trl.ms) == ("missing", "MemoryError: more than there is", None)
    assert naive.state == "timed" and naive.ms > 0


def test_peaks_and_csv(tmp_path):
    """Naive holds fp32 logits at least; that much of its peak is known."""
    file, table = tmp_path / "head.jsonl", tmp_path / "head.csv"
    bench_head.main(
        ["--model", "64x8000", "--tokens", "512", "--dtype", "fp32", *QUICK, "--providers", "naive",
         "--save", str(file), "--csv", str(table)]
    )  # fmt: skip
    assert read(file)[0].peak_mib > 512 * 8000 * 4 / 2**20
    with table.open(newline="") as opened:
        assert [row["metric_name"] for row in csv.DictReader(opened)] == ["speed", "memory"]


def returning(megabytes: int, beside: int):
    """A step that returns a tensor, and held another."""

    def step():
        made = torch.ones(megabytes << 18)
        return made, torch.ones(beside << 18).sum()

    return step


def test_a_peak_is_above_what_the_step_returns():
    many = [{"megabytes": 100, "beside": beside} for beside in (0, 60)] + [{"megabytes": "x"}]
    alone, both, failed = measure.peaks("tests.test_benchmarks:returning", many)
    assert alone < 8 << 20 and both == pytest.approx(60 << 20, rel=0.15)
    assert "TypeError: returning() missing" in failed


@pytest.mark.parametrize("mode", ["step", "forward"])
def test_the_small_language_model_is_a_workload(mode, tmp_path):
    file = tmp_path / "head.jsonl"
    bench_head.main(["--kind", "lm", "--tokens", "256", "--dtype", "fp32", "--mode", mode, *QUICK, "--no-memory",
                     *PAIR, "--save", str(file)])  # fmt: skip
    assert [(r.model, r.kind, r.state) for r in read(file)] == [("toy", "lm", "timed")] * 2


def test_time_against_each_axis(tmp_path, capsys):
    file = tmp_path / "scaling.jsonl"
    sizes = ["--D", "32", "--V", "500", "--tokens", "128", "256", "--vocabularies", "500", "1000", "2000",
             "--lengths", "16", "32", "--length", "32", "--fixed-tokens", "128", "--dtype", "fp32"]  # fmt: skip
    bench_scaling.main([*sizes, "--rounds", "2", *PAIR, "--save", str(file)])
    records = read(file)
    found = [(r.axis, r.provider, r.tokens, r.V, r.tokens // (2 * r.pairs)) for r in records]
    both = [(N, V, T) for N, V, T in ((128, 500, 32), (256, 500, 32))]
    assert found == [
        *[("tokens", name, *size) for size in both for name in ("naive", "plain")],
        *[("vocabulary", name, 128, V, 32) for V in (500, 1000, 2000) for name in ("naive", "plain")],
        *[("length", name, 128, 500, T) for T in (16, 32) for name in ("naive", "plain")],
    ]
    for axis in ("tokens", "vocabulary", "length"):
        for name in ("naive", "plain"):
            own = [r for r in records if (r.axis, r.provider) == (axis, name)]
            x = [{"tokens": r.tokens, "vocabulary": r.V, "length": r.tokens // (2 * r.pairs)}[axis] for r in own]
            assert {r.slope for r in own} == {measure.slope(x, [r.ms for r in own])}
            assert all(r.bench == "scaling" and r.peak_mib is None and r.error for r in own)
    assert "ms against vocabulary V: D 32, T 32, N 128" in capsys.readouterr().out


def test_memory_of_ours_is_flat_in_the_length_and_naives_grows_with_tokens(tmp_path):
    file = tmp_path / "memory.jsonl"
    bench_memory.main(
        ["--D", "64", "--V", "4000", "--tokens", "1024", "4096", "--lengths", "64", "1024", "--length", "128",
         "--fixed-tokens", "2048", "--dtype", "fp32", "--workspace", str(16 << 20), *PAIR, "--save", str(file)]
    )  # fmt: skip
    records = read(file)
    assert all(r.bench == "memory" and r.ms is None and r.error and r.rounds is None for r in records)
    of = {(r.axis, r.provider, r.tokens, r.pairs): r.peak_mib for r in records}
    naive, ours = ([of["tokens", name, N, N // 256] for N in (1024, 4096)] for name in ("naive", "plain"))
    assert naive[0] > 1024 * 4000 * 4 / 2**20 and naive[1] > 3 * naive[0]
    flat = [of["length", "plain", 2048, 2048 // (2 * T)] for T in (64, 1024)]
    assert max(*flat, *ours) < 16 + 4000 * 64 * 4 / 2**20 + 4, "workspace, one fp32 dw, and vectors"
    assert flat[0] == pytest.approx(flat[1], abs=2)


def test_slopes_of_known_powers():
    assert measure.slope([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert measure.slope([1, 10, 100], [5, 5, 5]) == pytest.approx(0)
    assert measure.slope([1, 10], [1, 100]) == pytest.approx(2)
    assert measure.slope([3], [1]) is None and measure.slope([1, 2], [0.0, 1.0]) is None


def test_interleaving_and_quartiles():
    calls = []
    times = measure.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=0)
    assert calls == ["a", "b", *["a", "b"] * 3]
    assert all(t.low <= t.median <= t.high for t in times.values())
    assert measure.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 2.0, 4.0) and measure.summary([2.0]) == (2.0, 2.0, 2.0)


def test_accuracy_and_products_save_records(tmp_path, capsys):
    file = tmp_path / "more.jsonl"
    accuracy.main(["--D", "16", "--V", "50", "--tokens", "24", "--dtypes", "fp32", "--save", str(file)])
    bench_products.main(["--N", "64", "--D", "16", "--V", "64", "--rounds", "1", "--save", str(file)])
    records = read(file)
    errors = [r for r in records if r.bench == "accuracy"]
    assert [(r.kind, r.provider) for r in errors] == [(k, p) for k in ("flat", "trained", "peaked") for p in (
        "naive", "plain")]  # fmt: skip
    assert all(len(r.error) == 4 and r.mode is None and r.ms is None for r in errors)
    products: list[Record] = records[len(errors) :]
    assert len(products) == 16 and all(r.bench == "products" and r.ms > 0 and r.ratio > 0 for r in products)
    assert "rows \\ tile" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bench", "bad"),
    [
        (bench_head, ["--tokens", "63"]), (bench_head, ["--masked", "1.0"]), (bench_head, ["--mode", "nothing"]),
        (bench_head, ["--model", "large"]), (bench_head, ["--model", "tiny", "--kind", "lm"]),
        (bench_head, ["--kind", "flat", "--entropy", "2"]), (bench_head, ["--providers", "nobody"]),
        (bench_scaling, ["--length", "100"]), (bench_scaling, ["--kind", "lm"]),
        (bench_memory, ["--axes", "vocabulary"]), (bench_memory, ["--rounds", "3"]),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(bench, bad):
    with pytest.raises(SystemExit) as stopped:
        bench.parse(bad)
    assert stopped.value.code == 2


@pytest.mark.parametrize("bench", [bench_head, bench_memory, bench_scaling, bench_products, accuracy])
def test_the_programs_explain_themselves(bench, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--help"])
    assert stopped.value.code == 0 and f"python -m {bench.__name__}" in capsys.readouterr().out
