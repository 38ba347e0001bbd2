"""The soak itself: what it would notice, and a short one."""

from __future__ import annotations

import json

import pytest

from tools import soak
from tools.slope import floor_slope


def test_the_slope_of_the_floor_is_found_whatever_comes_and_goes():
    """A cycle of ten, whose height grows, on a floor that grows by 0.3."""
    points = [(x, 5.0 + 0.3 * x + (x % 10) * (1 + x / 100) + (x % 7) / 50) for x in range(200, 1000)]
    found = floor_slope(points, 100)
    assert found.low < 0.3 < found.high and found.high - found.low < 0.01
    still = floor_slope([(x, 7.0 + (x % 10) * (1 + x / 100)) for x in range(200, 1000)], 100)
    assert still.value == pytest.approx(0, abs=1e-9) and still.mean == pytest.approx(7, abs=1e-6)
    with pytest.raises(ValueError, match="want points in at least 4 stretches of 16, got 1"):
        floor_slope([(1.0, 1.0), (1.0, 2.0)], 16)


def written(folder, losses, weights=b"w"):
    folder.mkdir()
    rows = [{"step": n, "loss": x, "grad_norm": 1.0} for n, x in losses] + [{"step": 20, "eval_loss": 0.5}]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_what_is_lost_or_differs_is_told(tmp_path):
    whole = written(tmp_path / "whole", [(10, 1.0), (20, 0.9)])
    again = written(tmp_path / "again", [(10, 1.0), (10, 1.0), (20, 0.9)])
    assert soak.compare(whole, again, 20) == []
    assert soak.compare(whole, again, 30) == ["want 30 steps, got 20"]
    lost = written(tmp_path / "lost", [(10, 1.0)], b"v")
    assert soak.compare(whole, lost, 20) == [
        "loss: 2 lines, of which lost: [20], different: []",
        "grad_norm: 2 lines, of which lost: [20], different: []",
        "the weights differ",
    ]
    other = written(tmp_path / "other", [(10, 1.1), (20, 0.9)])
    assert soak.compare(whole, other, 20) == ["loss: 2 lines, of which lost: [], different: [10]"]
    with pytest.raises(RuntimeError, match="step 10 was made twice and differs"):
        soak.logged(written(tmp_path / "torn", [(10, 1.0), (10, 1.2)]))


@pytest.mark.parametrize(
    ("leak", "told"), [(0, []), (48, ["allocated_mib"]), (3000, ["allocated_mib", "resident_mib"])]
)
def test_memory_that_grows_is_told(leak, told, tmp_path, capsys):
    """On the second of two ranks, under what evaluation takes every other time."""
    rows = [
        {"step": n, "resident_mib": [400.0, 390 + (n % 100) + leak * n / 2**20],
         "allocated_mib": [180.0, 170 + (n % 100) + leak * n / 2**20]}
        for n in range(50, 1001, 50)
    ]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = soak._memory(tmp_path, soak._arguments(["--logged", "100"]))
    assert [line.split()[2] for line in found] == told and all(line.startswith("rank 1: ") for line in found)
    assert capsys.readouterr().out.count(f"slope {leak:+.1f} bytes a step") == (4 if not leak else 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_soak(tmp_path, capfd):
    assert soak.main(["--steps", "80", "--every", "20", "--kills", "2", "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert printed.count("allocated_mib") == 2 and printed.count("resident_mib") == 2
    assert printed.count("killed a rank near step") == 2 and "nothing was lost in 2 kills" in printed
