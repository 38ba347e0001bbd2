"""make gpu-check, gpu-tune and gpu-step without a GPU: a part that fails never stops the others, everything that would
be run can be run, and what is measured is checked first."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import bench_head, bench_step, measure, parts, records
from benchmarks.ceilings import COPY, PRODUCTS
from benchmarks.gpu import ceilings, check, command, head_parts, heads, sanitizer, step, tune, whole_step
from benchmarks.gpu import results as gpu_results
from benchmarks.gpu.whole_model import BODIES, BYTES_A_WEIGHT, Stepper
from benchmarks.parts import FAILED, MISSING, NOT_REACHED, PASSED, TIMED_OUT, Part, python
from benchmarks.report import results
from tools.tuning import __main__ as tuning_command

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _nondeterministic():
    torch.use_deterministic_algorithms(False)


def script(name: str, code: str, **more) -> Part:
    return Part(name=name, item=1, command=python("-c", code), **more)


def runs(process: int) -> bool:
    """Nobody may have asked yet how it ended."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


# --- parts, limits, results -------------------------------------------------------------------------------------------


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(tmp_path, capsys):
    """The one that hangs has started a process of its own, which ends with it."""
    grandchild = tmp_path / "pid"
    hang = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(grandchild)!r}, 'w').write(str(child.pid)); print('hanging', flush=True); time.sleep(60)"
    )
    chosen = [
        script("fails", "print('before'); raise SystemExit('three is not two')"),
        script("hangs", hang, seconds=1.5),
        Part(name="absent", item=2, missing="not installed: a peer"),
        Part(name="not a command", item=2, command=("/nonexistent/tool",)),
        script("passes", "print('all well')"),
    ]
    seen: list[int] = []
    began = time.monotonic()
    outcomes = parts.run(chosen, budget=60.0, logs=tmp_path / "logs", after=lambda sofar: seen.append(len(sofar)))
    assert time.monotonic() - began < 20 and seen == [1, 2, 3, 4, 5]
    assert [o.state for o in outcomes] == [FAILED, TIMED_OUT, MISSING, FAILED, PASSED]
    assert [o.broken for o in outcomes] == [True, True, False, True, False]
    assert outcomes[0].reason == "exit code 1: three is not two" and "limit of 2 s" in outcomes[1].reason
    assert outcomes[1].output == "hanging\n" and "could not be started" in outcomes[3].reason
    assert not runs(int(grandchild.read_text()))
    shown = capsys.readouterr().out
    assert "    before" in shown and "    all well" in shown and "absent: missing after 0 s: not installed" in shown
    told = parts.summary(outcomes)
    assert re.search(r"1  fails +failed", told) and "5 parts" in told and "2 failed, 1 timed out, 1 missing" in told


def test_a_budget_is_kept_and_what_it_cut_off_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "LEAST", 0.4)
    chosen = [script("long", "import time; time.sleep(60)"), script("next", "print(1)")]
    outcomes = parts.run(chosen, budget=1.0, logs=tmp_path)
    assert [o.state for o in outcomes] == [TIMED_OUT, NOT_REACHED] and "left of the budget" in outcomes[0].reason
    assert "budget of 1 s was spent" in outcomes[1].reason and outcomes[1].broken


def test_a_part_has_a_command_or_a_reason():
    for bad in ({}, {"command": ("x",), "missing": "y"}):
        with pytest.raises(ValueError, match="want a command or a reason"):
            Part(name="p", item=1, **bad)


@pytest.fixture
def facts():
    return results.with_simd(measure.environment())


@pytest.fixture
def pretended(monkeypatch, facts):
    """A GPU that is none, for the commands' own business."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(parts, "environment", lambda: facts)
    monkeypatch.setattr(measure, "environment", lambda: {name: facts[name] for name in results.ENVIRONMENT})


def test_what_failed_stands_in_the_results_until_it_is_measured(tmp_path, pretended, facts, capsys):
    run = head_parts.Heads("tiny", "step", (64, 32), False, 30.0)
    good = head_parts.part(run, tmp_path, facts).owes

    def build(works: bool):
        def made(folder: Path, facts: dict) -> list[Part]:
            part = head_parts.part(run, folder, facts)
            rows = [records.as_dict(one) for one in (good if works else good[:1])]
            text = "".join(json.dumps({**row, "state": "timed", "reason": "", "ms": 1.0}) + "\n" for row in rows)
            code = f"open({str(part.save)!r}, 'w').write({text + ('' if works else '{half')!r}); "
            code += "print('done')" if works else "raise SystemExit('out of luck')"
            return [script("head", code, save=part.save, owes=part.owes)]

        return made

    options = ["--results", str(tmp_path / "results"), "--budget", "60"]
    assert command.main("check", None, build(False), 60.0, [*options, "--logs", str(tmp_path / "a")]) == 1
    (file,) = (tmp_path / "results").glob("*.json")
    found = results.read(file).records
    assert {(r.tokens, r.state) for r in found} == {(64, "timed"), (32, "missing")}
    assert next(r.reason for r in found if r.tokens == 32) == "exit code 1: out of luck"
    assert "half a line was left out" in capsys.readouterr().out
    (story,) = (tmp_path / "results").glob("*-check.jsonl")
    assert json.loads(story.read_text())["state"] == "failed" and json.loads(story.read_text())["device"]
    assert command.main("check", None, build(True), 60.0, [*options, "--logs", str(tmp_path / "b")]) == 0
    assert {(r.tokens, r.state) for r in results.read(file).records} == {(64, "timed"), (32, "timed")}


def test_what_other_commands_left_in_the_results_stays(tmp_path, facts):
    other = {**measure.environment(), "bench": "ceilings", "command": "other", "what": COPY, "ms": 1.0}
    other |= dict.fromkeys(("dtype", "tokens", "D", "V", "tflops", "gb_per_s", "low_ms", "high_ms", "rounds"))
    results.write(tmp_path, facts, [other])
    saved = tmp_path / "new.jsonl"
    saved.write_text(json.dumps({**other, "command": "new --save here", "what": PRODUCTS[0]}) + "\n")
    outcome = parts.Outcome(script("c", "", save=saved), PASSED, 1.0, "", "")
    (_, file) = gpu_results.keep("check", [outcome], facts, tmp_path)
    assert [(row.command, row.what) for row in results.read(file).ceilings] == [("other", COPY), ("new", PRODUCTS[0])]


def test_results_that_cannot_be_written_stop_no_part(tmp_path, pretended, capsys):
    (tmp_path / "a file").write_text("")
    chosen = [script("one", "print('first')"), script("two", "print('second')")]
    options = ["--results", str(tmp_path / "a file")]
    assert command.main("check", None, lambda folder, facts: chosen, 30.0, options) == 1
    shown = capsys.readouterr().out
    assert "    second" in shown and "2 parts" in shown and "nothing could be written" in shown


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [check, tune, step], ids=lambda module: module.__name__)
def test_without_a_gpu_nothing_is_run(made, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(parts, "run", lambda *a, **k: pytest.fail("something was run"))
    assert made.main([]) == 2
    assert "no GPU here" in capsys.readouterr().out


def test_every_command_line_is_one_that_its_module_takes(tmp_path, facts, pretended):
    every = [part for made in (check, tune, step) for part in made.build(tmp_path, facts)]
    seen = set()
    for part in every:
        if not part.command or part.command[1] != "-m":
            continue
        module, rest = part.command[2], list(part.command[3:])
        seen.add(module)
        if module == "benchmarks.gpu.heads":
            sizes, more = heads.parse(rest)
            for size, owed in zip(sizes, part.owes, strict=True):
                args, setting = bench_head.parse(["--tokens", str(size), *more])
                assert (setting.model, setting.tokens, args.mode) == (owed.model, owed.tokens, owed.mode)
                assert args.save == part.save and "triton" in args.providers and "naive" in args.providers
        elif module == "tools.tuning":
            assert tuning_command._options(rest).write
        elif module in ("benchmarks.gpu.ceilings", "benchmarks.gpu.whole_step", "benchmarks.bench_step"):
            {"ceilings": ceilings, "whole_step": whole_step, "bench_step": bench_step}[module.split(".")[-1]].parse(
                rest
            )
        elif module == "pytest":
            assert check.PARITY in rest[rest.index("-k") + 1]
    assert {"benchmarks.gpu.heads", "tools.tuning", "benchmarks.gpu.ceilings", "pytest", "expo_kernels"} <= seen
    assert f"def {check.PARITY}(" in (ROOT / "tests" / "gpu" / "test_card.py").read_text()
    assert {part.item for part in check.build(tmp_path, facts)} == {1, 2, 3, 4}
    shapes = {(one.model, one.mode, one.tokens) for part in check.build(tmp_path, facts) for one in part.owes}
    assert len(shapes) == 3 * 3 * 3, "three models, modes and sizes"


def test_the_list_and_the_choice_of_parts(pretended, capsys, tmp_path):
    def build(folder: Path, facts: dict) -> list[Part]:
        return [
            script("one a", "print(1)"),
            Part(name="two a", item=2, missing="no reason"),
            script("three", "print(3)"),
        ]

    assert command.main("check", None, build, 9.0, ["--list", "--only", "a"]) == 0
    assert [line.split(",")[0].split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "1  one a",
        "2  two a",
    ]
    assert command.main("check", None, build, 9.0, ["--items", "7"]) == 2
    assert command.main("check", None, build, 9.0, ["--items", "2", "--results", str(tmp_path)]) == 0
    assert "1 parts in 0 s: 1 missing" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main("check", None, build, 9.0, ["--logs", str(tmp_path)])  # where the results are now


def test_the_sanitizer_is_found_in_a_cuda_folder_or_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(
        sanitizer, "Path", lambda name: tmp_path / "nowhere" if str(name).startswith("/usr") else Path(name)
    )
    assert all("neither on PATH" in part.missing for part in sanitizer.parts(1))
    tool = tmp_path / "cuda" / "bin" / sanitizer.NAME
    tool.parent.mkdir(parents=True)
    tool.write_text("")
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    memory, races = sanitizer.parts(1)
    assert memory.command[0] == str(tool) and "memcheck" in memory.command and "racecheck" in races.command
    assert (ROOT / memory.command[memory.command.index("pytest") + 1]).is_file()
    assert memory.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


# --- what they run, on a CPU ------------------------------------------------------------------------------------------


def test_a_size_that_fails_does_not_stop_the_others(capsys):
    def bench(arguments: list[str]) -> None:
        size = arguments[1]
        if size == "2":
            raise RuntimeError("no room")
        if size == "3":
            sys.exit("wrong")
        print("measured", *arguments)

    assert heads.main(["--tokens", "1", "2", "3", "4", "--", "--mode", "step"], bench) == 2
    shown = capsys.readouterr().out
    assert "measured --tokens 1 --mode step" in shown and "measured --tokens 4" in shown
    assert (
        "RuntimeError: no room" in shown and "3 tokens: wrong" in shown and "failed: 2 tokens, 3 tokens of 4" in shown
    )
    for bad in (["--tokens", "1"], ["--tokens", "1", "--"], ["--tokens", "1", "--", "--tokens", "2"]):
        with pytest.raises(SystemExit):
            heads.main(bad, bench)


def test_heads_measures_every_size(tmp_path):
    save = tmp_path / "head.jsonl"
    more = ["--model", "tiny", "--pairs", "2", "--rounds", "2", "--warmup", "0", "--no-memory"]
    more += ["--providers", "triton", "naive", "plain", "--save", str(save)]
    assert heads.main(["--tokens", "64", "32", "--", *more]) == 0
    rows = [json.loads(line) for line in save.read_text().splitlines()]
    assert [(row["tokens"], row["provider"], row["state"]) for row in rows] == [
        (tokens, *who) for tokens in (64, 32) for who in (("triton", "missing"), ("naive", "timed"), ("plain", "timed"))
    ]


TINY_CEILINGS = ["--device", "cpu", "--N", "64", "--D", "96", "--V", "300", "--copy-mib", "1", "--rounds", "2"]


def test_ceilings(tmp_path, capsys):
    """The report reads them; what a CPU's library does not have is missing and not left out."""
    save = tmp_path / "ceilings.jsonl"
    ceilings.main([*TINY_CEILINGS, "--warmup", "0", "--save", str(save)])
    rows = [results._row(json.loads(line), "here") for line in save.read_text().splitlines()]
    assert [row.what for row in rows] == [COPY, *PRODUCTS] and all(row.low_ms <= row.ms <= row.high_ms for row in rows)
    assert rows[0].gb_per_s > 0 and rows[1].tflops == pytest.approx(2e-9 * 64 * 96 * 300 / rows[1].ms)
    assert capsys.readouterr().out.count("missing: Could not run") == 6


def test_a_wrong_product_is_not_timed(monkeypatch):
    right = ceilings.Subject.run
    monkeypatch.setattr(ceilings.Subject, "run", lambda self: (right(self), self.out[-1].mul_(1.1)))
    with pytest.raises(RuntimeError, match=r"off by .* not timed"):
        ceilings.main([*TINY_CEILINGS, "--warmup", "0"])


def whole_steps(save: Path, head: str, *more: str) -> list[dict]:
    size = ["--model", "tiny", "--lengths", "32", "--rounds", "1", "--device", "cpu"]
    whole_step.main(["--head", head, *size, *more, "--save", str(save)])
    rows = [json.loads(line) for line in save.read_text().splitlines()]
    assert {row["provider"] for row in rows} == {head}
    assert all(isinstance(results._row(row, "here"), results.Step) for row in rows), "the report reads them"
    return rows


def test_a_whole_step_of_fewer_layers(tmp_path):
    """Half of them as well, and what both say of all; then the longest pair."""
    rows = whole_steps(tmp_path / "step.jsonl", "ours", "--layers", "2", "--grain", "16", "--most", "40")
    assert [row["layers"] for row in rows] == [2, 1, 4, 2]
    assert rows[2]["ms"] == pytest.approx(rows[0]["ms"] + 2 * (rows[0]["ms"] - rows[1]["ms"]))
    assert "extrapolated from 2 and 1 layers" in rows[2]["model"]
    assert (rows[3]["longest"], rows[3]["note"]) == (32, "the longest pair that fits; no longer one was tried")


def test_a_whole_step_with_a_naive_head(tmp_path):
    (row,) = whole_steps(tmp_path / "step.jsonl", "naive", "--layers", "4", "--no-longest")
    assert row["tokens_per_second"] == pytest.approx(64e3 / row["ms"]) and row["model"] == "tiny, 4 layers"


def test_no_room_is_said(monkeypatch, capsys):
    def full(self, length: int):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(Stepper, "step", full)
    arguments = ["--head", "ours", "--device", "cpu", "--model", "tiny", "--layers", "4", "--lengths", "32"]
    with pytest.raises(RuntimeError, match="not even a pair of 2 x 2048"):
        whole_step.main(arguments)
    assert "missing: out of memory" in capsys.readouterr().out


def test_a_head_that_computes_something_else_is_not_timed(monkeypatch):
    right = Stepper._loss
    monkeypatch.setattr(
        Stepper, "_loss", lambda self, pair, head: right(self, pair, head) * (1.2 if head == "ours" else 1)
    )
    monkeypatch.setattr(measure, "interleaved", lambda *a, **k: pytest.fail("a wrong head was timed"))
    with pytest.raises(SystemExit, match=r"loss: ours .* not timed"):
        whole_step.main(["--head", "ours", "--device", "cpu", "--model", "tiny", "--layers", "4", "--lengths", "16"])


@pytest.mark.parametrize("longest", [0, 1, 2, 7, 8, 31, 40])
def test_bisection_finds_the_longest(longest):
    tried = []

    def fits(length: int) -> bool:
        tried.append(length)
        return length <= 10 * longest

    assert whole_step.bisect(fits, 10, 10 * 33) == 10 * min(longest, 33)
    assert len(tried) == len(set(tried)) <= 12


def test_layers_by_the_memory_of_the_card():
    llama = BODIES["llama3-8b"]
    assert llama.weights(32) == 8_030_261_248 - 65 * 4096, "Llama-3 8B without its norms"
    assert [whole_step.most_layers(llama, gib << 30) for gib in (139, 80, 40, 24)] == [32, 16, 8, 4]
    assert llama.weights(16) * BYTES_A_WEIGHT < 0.6 * (80 << 30)
