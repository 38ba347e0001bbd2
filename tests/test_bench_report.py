"""The report: every table from records alone, one section a device, and pages that are what the results give.

All records here are made up; none is ever written to benchmarks/results.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records
from benchmarks.ceilings import COPY, PRODUCTS, Ceiling
from benchmarks.records import Record
from benchmarks.report import __main__ as report
from benchmarks.report import page, plots, readme, results, shape, tables, targets, whole_steps
from benchmarks.report.numbers import between, errors, figure, times

CPU = {
    "device": "Made Up", "torch": "2.13", "triton": None, "python": "3.11", "commit": "synthetic", "date": "2026-01-02",
    "driver": None, "threads": 2, "platform": "nowhere",
}  # fmt: skip
GPU = {**CPU, "device": "Made Up H200", "triton": "3.6", "driver": "580", "threads": 16}
SIZE = {"model": "small", "D": 100, "V": 1000, "tokens": 64, "pairs": 4, "masked": 0.0, "kind": "trained"}
NAIVE_ERROR, OURS_ERROR = (1e-3, 8e-3, 8e-3), (1e-7, 2e-3, 4e-3)


def record(provider: str, ms: float | None = None, **more: Any) -> Record:
    """The library's three products take 100 ms."""
    known = {**CPU, **SIZE, "bench": "head", "dtype": "bf16", "mode": "step", "scored": 64, "entropy": 2.0, "nll": 2.1}
    state = {"state": "timed"} if ms is not None else {"state": "missing"}
    timing = {
        "ms": ms, "low_ms": 0.9 * ms, "high_ms": 1.1 * ms, "products_ms": 100.0, "ratio": ms / 100, "rounds": 3,
        "tflops": 6e-9 * 64 * 100 * 1000 / ms, "error": OURS_ERROR if provider == "plain" else NAIVE_ERROR,
    } if ms is not None else {}  # fmt: skip
    return Record(
        **{**known, **state, **timing, "provider": provider, "command": "python -m benchmarks.bench_head", **more}
    )


def ceiling(what: str, **more: Any) -> Ceiling:
    size = {"dtype": None, "tokens": None, "D": None, "V": None, "tflops": None, "gb_per_s": None}
    timing = {"ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "rounds": 3}
    return Ceiling(
        **{
            **CPU,
            "command": "python -m benchmarks.ceilings",
            "bench": "ceilings",
            **size,
            **timing,
            "what": what,
            **more,
        }
    )


def step(provider: str, speed: float, over_trl: float | None) -> dict[str, Any]:
    """As bench_step writes it, with more than the report reads."""
    return {
        **CPU, "command": "python -m benchmarks.bench_step", "model": "tiny", "vocabulary": 32000, "dtype": "fp32",
        "pairs": 4, "longest": 512, "rounds": 4, "provider": provider, "state": "timed", "reason": "",
        "tokens_per_second": speed, "low": speed - 1, "high": speed + 1, "ratio_compiled": 1.5, "ratio_trl": over_trl,
        "extra_peak_mib": 594.4, "standing_mib": 1013.1, "losses": [0.69, 0.7],
    }  # fmt: skip


def sweep(
    bench: str, axis: str, sizes: tuple[int, ...], provider: str, values: tuple[float, ...], **more: Any
) -> list[Record]:
    place = {"tokens": lambda n: {"tokens": n, "scored": n, "pairs": n // 16}, "vocabulary": lambda n: {"V": n},
             "length": lambda n: {"tokens": 64, "pairs": 32 // n}}[axis]  # fmt: skip
    return [
        record(provider, value, bench=bench, axis=axis, **place(n), **more)
        if bench == "scaling"
        else record(provider, 1.0, bench=bench, axis=axis, peak_mib=value, **place(n), **more)
        for n, value in zip(sizes, values, strict=True)
    ]


ROWS = [
    record("naive", 150.0, peak_mib=700.0), record("torch.compile", 120.0), record("plain", 240.0, peak_mib=300.0),
    record("trl", 900.0), record("liger-preference", reason="wants|a `GPU`"), record("native", reason="not built"),
    record("naive", 150.0, masked=0.5, scored=32), record("plain", 120.0, masked=0.5, scored=32),
    record("naive", 200.0, dtype="fp32"), record("plain", 220.0, dtype="fp32"),
    *sweep("scaling", "tokens", (64, 128), "plain", (10.0, 20.0), slope=1.0),
    *sweep("scaling", "vocabulary", (1000, 2000), "plain", (10.0, 25.0), slope=1.32),
    *sweep("memory", "length", (8, 16), "plain", (50.0, 52.0), slope=0.06, workspace=64 << 20),
]  # fmt: skip


def written(folder: Path, rows: list[Any], environment: dict[str, Any] = CPU, simd: str | None = "AVX2") -> Path:
    plain = [
        row if isinstance(row, dict) else records.as_dict(row) if isinstance(row, Record) else dataclasses.asdict(row)
        for row in rows
    ]
    return results.write(folder, {**environment, "simd": simd}, plain)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A docs folder, a README with the markers, and made-up results of one CPU."""
    monkeypatch.setattr(report, "predicted", lambda every: [f"from {sum(len(one.ceilings) for one in every)} ceilings"])
    (tmp_path / "docs").mkdir()
    begin, end = (f"<!-- {readme.MARKER}: {word} -->" for word in ("begin", "end"))
    (tmp_path / "README.md").write_text(f"above\n\n{begin}\nold\n{end}\n\nbelow\n")
    ceilings = [
        ceiling(COPY, gb_per_s=20.0),
        ceiling(PRODUCTS[0], dtype="fp32", tflops=0.1),
        ceiling(PRODUCTS[0], dtype="bf16", tflops=0.01),
    ]
    written(tmp_path / "results", [*ROWS, *ceilings, step("ours", 700.0, 2.8), step("trl", 250.0, 1.0)])
    return tmp_path


def arguments(site: Path, *more: str) -> list[str]:
    return [
        "--results",
        str(site / "results"),
        "--docs",
        str(site / "docs"),
        "--readme",
        str(site / "README.md"),
        *more,
    ]


# the committed pages


def test_the_pages_are_what_the_committed_results_give():
    assert report.main(["--check"]) == 0, "python -m benchmarks.report"


# files


def test_a_results_file_is_named_after_date_and_device_and_comes_back(site):
    [path] = (site / "results").iterdir()
    assert path.name == "2026-01-02-made-up-2-threads-avx2.json"
    found = results.read(path)
    assert list(found.records) == ROWS and len(found.steps) == 2 and len(found.ceilings) == 3
    assert (found.date, found.device) == ("2026-01-02", "made-up-2-threads-avx2")
    assert "python -m benchmarks.bench_head" in found.commands
    lines = path.read_text().splitlines()
    assert sum('"provider": "plain"' in line for line in lines) == sum(r.provider == "plain" for r in ROWS), (
        "one a line"
    )


def test_a_gpu_is_its_own_device_class_and_the_newest_file_counts(tmp_path):
    written(tmp_path, [record("naive", 150.0)])
    written(tmp_path, [record("naive", 130.0)], {**CPU, "date": "2026-03-04"})
    written(tmp_path, [record("triton", 110.0)], GPU, None)
    found = results.newest(tmp_path)
    assert [(one.device, one.date) for one in found] == [
        ("made-up-2-threads-avx2", "2026-03-04"), ("made-up-h200", "2026-01-02"),
    ]  # fmt: skip


def test_where_it_was_saved_does_not_enter_the_file(tmp_path):
    path = written(tmp_path, [record("naive", 150.0, command="python -m x --tokens 8 --save /tmp/a.jsonl --rounds 3")])
    assert results.read(path).commands == ("python -m x --tokens 8 --rounds 3",)
    assert "/tmp" not in path.read_text()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.json", "{}", "want a name of date and device"),
        ("2026-01-02-a.json", "{}", "want environment, commands and records"),
        ("2026-01-02-a.json", '{"environment": {}, "commands": [], "records": [{"bench": "head"}]}', "record 1: want"),
        ("2026-01-02-a.json", '{"environment": {}, "commands": [], "records": [{"bench": "ceilings"}]}', "without dev"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        results.newest(tmp_path)
    assert name in str(caught.value)


def test_records_that_no_table_shows_are_refused(site):
    [path] = (site / "results").iterdir()
    found = results.read(path)
    odd = found._replace(records=(record("naive", 150.0, bench="step"),))
    with pytest.raises(ValueError, match="got some of step"):
        page.page([odd], [], [])


# tables


def row(lines: list[str], *cells: str) -> list[str]:
    """The cells of the only line that begins with these."""
    [found] = [line for line in lines if line.startswith("| " + " | ".join(cells) + " |")]
    return found.strip("| ").split(" | ")


def test_the_head_by_mode_and_provider():
    lines = "\n".join(tables.head(ROWS[:6])).splitlines()
    assert lines[0] == "#### bf16, 64 tokens, D 100, V 1,000"
    assert row(lines, "step", "the library's 3 products")[2:5] == ["100", "-", "1.00"]
    assert row(lines, "step", "**plain**") == [
        "step", "**plain**", "240", "216 to 264", "2.40", "2.00", "0.00016", "300", "1.0e-07, 2.0e-03, 4.0e-03",
    ]  # fmt: skip
    assert row(lines, "step", "naive")[7] == "700" and row(lines, "step", "trl")[7] == "-"
    assert "- Missing: **native** (step): `not built`" in lines
    assert "- Missing: liger-preference (step): `wants/a 'GPU'`" in lines, "a reason is shown as code"
    assert "`python -m benchmarks.bench_head`" in lines


def test_half_the_tokens_masked_stand_beside_all_of_them():
    lines = "\n".join(tables.head(ROWS[:8])).splitlines()
    assert "#### bf16, 64 tokens, 50 % masked, D 100, V 1,000" in lines
    masked = lines[lines.index("#### bf16, 64 tokens, 50 % masked, D 100, V 1,000") :]
    assert row(masked, "step", "**plain**")[-1] == "0.50" and row(masked, "step", "naive")[-1] == "1.00"


def test_packing_is_by_the_padded_batch():
    own = [
        record(way, bench="packing", kind="HH-like", state="counted", reason="tokens, not time", ratio=ratio)
        for way, ratio in zip(whole_steps.WAYS, (1.0, 0.42, 0.3), strict=True)
    ]
    for way, ms in zip(whole_steps.WAYS, (100.0, 190.0, 80.0), strict=True):
        how = "padded" if way == "padded" else "mask"
        own.append(record(way, ms, bench="packing", kind=f"{how}, prompt share 0.50"))
    text = "\n".join(whole_steps.packing(own))
    assert "| HH-like | 1.00 | 0.42 | 0.30 |" in text
    assert "| prompt share 0.50 | 100, 1.00 | 190, 1.90 | 80.0, 0.80 |" in text
    assert whole_steps.packing([]) == []


def test_a_sweep_has_a_line_a_place_and_its_slope():
    lines = "\n".join(tables.scaling([r for r in ROWS if r.bench == "scaling"])).splitlines()
    assert row(lines, "64")[1] == "10.0" and row(lines, "128")[1] == "20.0" and row(lines, "2,000")[1] == "25.0"
    assert [line for line in lines if line.startswith("| slope")] == ["| slope | 1.00 |", "| slope | 1.32 |"]
    lines = "\n".join(tables.memory([r for r in ROWS if r.bench == "memory"])).splitlines()
    assert lines[0] == "#### peak MiB against T: step, bf16" and row(lines, "8")[1] == "50.0"


def test_error_beside_speed_from_the_fastest_on():
    lines = tables.speed_and_error(ROWS[:4])[0].splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["torch.compile", "naive", "**plain**", "trl"]
    assert lines[4].endswith("| 1.0e-07, 2.0e-03, 4.0e-03 | 0.000, 0.25, 0.50 |"), "each beside naive's"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (1456.4, "1,456"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.1234, "0.123"),
        (1.6e-4, "0.00016"),
        (0.0, "0.000"),
    ],
)
def test_a_figure_has_three_digits(value, said):
    assert figure(value) == said


def test_other_numbers():
    assert (times(2.347), times(0.0312), times(None)) == ("2.35", "0.031", "-")
    assert (between(1.0, 2.0), between(None, 2.0), errors((1e-3,)), errors(None)) == (
        "1.00 to 2.00",
        "-",
        "1.0e-03",
        "-",
    )


# targets


def verdicts(site: Path) -> dict[str, targets.Target]:
    [path] = (site / "results").iterdir()
    return {
        target.what: target
        for target in [*targets.targets(results.read(path)), *targets.whole_steps(results.read(path))]
    }


def test_targets_of_a_cpu_are_met_or_not_and_by_how_much(site):
    found = verdicts(site)
    products = found["bf16 step by the library's three products (bf16, 64 tokens, D 100, V 1,000)"]
    assert (products.wanted, products.met, products.gap) == ("at most 1.30", False, "1.85 x that"), "2.40 by 1.30"
    compiled = found["bf16: time by that of compiled naive code, in the worst mode"]
    assert (compiled.met, compiled.gap) == (False, "2.00 x that")
    assert found["fp32: time by that of compiled naive code, in the worst mode"].met is None, "no compiled code in fp32"
    assert found["trl's time by ours, step (bf16, 64 tokens, D 100, V 1,000)"].met, "900 by 240, at least 1.25"
    assert found["time grows as N does: slope"].met and not found["time grows as V does: slope"].met
    assert found["memory is flat in T: largest by smallest peak"].met, "52 by 50"
    peak = found["step: peak by workspace and one fp32 dw, the largest"]
    assert peak.met and peak.measured.startswith("0.81 ("), "52 of 64 and the 0.4 of dw"
    assert found["trainer: tokens a second by TRL's, V 32,000"].met


def test_a_limit_follows_from_the_error():
    """Ours no more precise than naive code: the stricter one."""
    head = shape.cases([record("naive", 150.0), record("plain", 120.0, error=NAIVE_ERROR)])
    [products, *_] = targets._cpu_products(head)
    assert (products.wanted, products.met, products.gap) == ("at most 1.08", False, "1.11 x that")


def test_a_slow_library_is_said(site):
    [path] = (site / "results").iterdir()
    [line, _] = targets.slow_library(results.read(path))
    assert "reach 0.10 of the speed" in line


def test_ours_that_was_wrong_breaks_the_promise_of_error():
    wrong = record("plain", state="wrong", reason="error of dh 1, want at most 1.25 x naive's 0.1")
    assert targets._precise([wrong]).met is False
    assert targets._precise([]).met is None


def test_targets_of_a_gpu(tmp_path):
    rows = [record("triton", 105.0), record("naive", 200.0), record("triton", 130.0, mode="frozen", products_ms=100.0)]
    found = results.read(written(tmp_path, rows, GPU, None))
    shares = [target for target in targets.targets(found) if "share of the library" in target.what]
    assert [(target.measured, target.met) for target in shares] == [("0.95", True), ("0.77", False)]


# pages


def test_writing_then_checking(site):
    assert report.main(arguments(site, "--check")) == 1, "nothing is written yet"
    assert report.main(arguments(site)) == 0
    assert report.main(arguments(site, "--check")) == 0
    text, short = (site / "docs" / "performance.md").read_text(), (site / "README.md").read_text()
    assert text.splitlines()[0] == page.FIRST.strip() and "python -m benchmarks.report" in text.splitlines()[0]
    assert "## Made Up, 2 threads, AVX2" in text and short.startswith("above") and short.endswith("below\n")
    assert "old" not in short and "| Made Up: bf16, 64 tokens, D 100, V 1,000 | **plain** | 240 | 2.40 | 300 |" in short
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (site / "docs" / name).exists()
    assert len(re.findall(r"!\[", text)) == 4
    assert text.endswith("## Predicted, not measured\n\nfrom 3 ceilings\n")
    drawn = site / "docs" / "performance" / "made-up-2-threads-avx2-time.svg"
    for stale in (site / "docs" / "performance.md", drawn, site / "README.md"):
        stale.write_bytes(stale.read_bytes().replace(b"2.40", b"2.39").replace(b"</svg>", b"</svg> "))
    drawn.with_name("made-up-old-time.svg").touch()
    told = report.check(site / "results", site / "docs", site / "README.md")
    assert [line.partition(" is not")[0] for line in told] == [
        "docs/performance/made-up-2-threads-avx2-time.svg", "docs/performance/made-up-old-time.svg",
        "docs/performance.md", f"README.md, {readme.MARKER}",
    ]  # fmt: skip


def section(text: str, device: str) -> str:
    return text.split(f"## {device}\n")[1].split("\n## ")[0]


def test_a_new_run_replaces_its_own_section_only(site):
    written(site / "results", [record("triton", 110.0), record("naive", 180.0)], GPU, None)
    report.main(arguments(site))
    before = (site / "docs" / "performance.md").read_text()
    drawn = {path.name: path.read_bytes() for path in (site / "docs" / "performance").iterdir()}
    written(site / "results", [record("plain", 100.0), record("naive", 150.0)], {**CPU, "date": "2026-03-04"})
    report.main(arguments(site))
    after = (site / "docs" / "performance.md").read_text()
    assert section(after, "Made Up H200") == section(before, "Made Up H200")
    assert section(after, "Made Up, 2 threads, AVX2") != section(before, "Made Up, 2 threads, AVX2")
    kept = {path.name: path.read_bytes() for path in (site / "docs" / "performance").iterdir()}
    assert {name for name in kept if "h200" in name} == {name for name in drawn if "h200" in name}
    assert all(kept[name] == drawn[name] for name in kept if "h200" in name)
    assert not any("roofline" in name and "avx2" in name for name in kept), "its ceilings are gone, so its plot is"
    short = (site / "README.md").read_text()
    assert "Made Up H200: bf16" in short and "Made Up: bf16" in short


def test_without_results_the_page_is_empty_and_valid(site):
    for path in (site / "results").iterdir():
        path.unlink()
    assert report.main(arguments(site)) == 0 and report.main(arguments(site, "--check")) == 0
    text = (site / "docs" / "performance.md").read_text()
    assert "There are no results yet" in text and text.count("\n## ") == 1, "what is predicted alone"
    assert readme.NOTHING_YET in (site / "README.md").read_text()


def test_plots_have_the_same_bytes_each_time(site, tmp_path):
    [path] = (site / "results").iterdir()
    first, second = (plots.draw(results.read(path), tmp_path / name) for name in ("a", "b"))
    assert [path.name.rpartition("-")[2] for path in first] == ["time.svg", "memory.svg", "error.svg", "roofline.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert max(len(path.read_bytes()) for path in first) < 60_000


def test_operations_a_byte():
    """N 64, D 100, V 1000 in 2 bytes: 3 x 2 x 6.4e6 operations, h, w, dh and dw of 6400 + 100000 numbers each."""
    assert plots.intensity(record("plain", 1.0)) == pytest.approx(3 * 2 * 6.4e6 / (2 * 2 * 106_400))
    assert plots.intensity(record("plain", 1.0, mode="forward")) == pytest.approx(2 * 6.4e6 / (2 * 106_400))


def test_predicted_lines_come_once_and_are_marked(site):
    [path] = (site / "results").iterdir()
    text = page.page([results.read(path)], [], ["| a |", "| --- |"])
    assert text.count("## Predicted, not measured") == 1 and text.endswith("| a |\n| --- |\n")


def test_nothing_made_up_is_among_the_committed_results():
    for path in results.FOLDER.glob("*.json"):
        assert "synthetic" not in json.dumps(json.loads(path.read_text())["environment"])
