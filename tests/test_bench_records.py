"""The benchmarks' records: whole or refused, and read back as written."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest

from benchmarks import measure
from benchmarks.records import FIELDS, LIGER_COLUMNS, Environment, Record, append, append_csv, as_dict, percentile, read


def record(**given) -> Record:
    fields = {"command": "python -m x", "bench": "head", "provider": "plain", "state": "timed"}
    return Record(**{**measure.environment(), **fields, **given})


def test_the_environment_is_what_a_record_names():
    found = measure.environment()
    assert found.keys() == {field.name for field in dataclasses.fields(Environment)}
    assert found["device"] and found["commit"] and found["threads"] >= 1


def test_records_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "new" / "results.jsonl"
    written = [record(ms=1.5, error=(1e-3, 2e-3)), record(state="missing", reason="no card")]
    for one in written:
        append(file, one)
    assert read(file) == written
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(line.keys() == set(FIELDS) for line in lines), "what is missing is null, never absent"
    assert lines[0]["peak_mib"] is None and lines[0]["error"] == [1e-3, 2e-3]


def test_unknown_and_absent_fields_are_refused(tmp_path):
    file = tmp_path / "results.jsonl"
    whole = as_dict(record())
    append(file, record())
    append(file, {**whole, "speed": 3})
    with pytest.raises(ValueError, match=r"results.jsonl, line 2: .* got unknown \['speed'\], without \[\]"):
        read(file)
    file.write_text(json.dumps({name: value for name, value in whole.items() if name != "ms"}))
    with pytest.raises(ValueError, match=r"line 1: .* without \['ms'\]"):
        read(file)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bench": "heads"}, "want bench one of"),
        ({"state": "slow", "reason": "?"}, "want state one of"),
        ({"mode": "backward"}, "want mode one of"),
        ({"axis": "D"}, "want axis one of"),
        ({"state": "missing"}, "want a reason unless timed, got '' for 'missing'"),
        ({"reason": "why not"}, "want a reason unless timed"),
    ],
)
def test_records_that_make_no_sense(given, said):
    with pytest.raises(ValueError, match=said):
        record(**given)


def test_percentiles_between_neighbours():
    assert [percentile([4.0, 1.0, 2.0, 3.0, 5.0], share) for share in (0.0, 0.2, 0.5, 0.8, 1.0)] == pytest.approx(
        [1.0, 1.8, 3.0, 4.2, 5.0]
    )
    assert percentile([7.0], 0.8) == 7.0


def test_csv_has_ligers_columns_and_ours(tmp_path):
    file = tmp_path / "all.csv"
    for tokens in (64, 128):
        append_csv(file, record(tokens=tokens, mode="step", peak_mib=3.5), [0.001, 0.002, 0.003], "0.8.5")
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert list(rows[0])[: len(LIGER_COLUMNS)] == list(LIGER_COLUMNS) and set(FIELDS) <= rows[0].keys()
    assert [(r["metric_name"], r["metric_unit"], r["x_value"]) for r in rows] == [
        ("speed", "ms", "64"), ("memory", "MB", "64"), ("speed", "ms", "128"), ("memory", "MB", "128"),
    ]  # fmt: skip
    first = rows[0]
    assert [float(first[f"y_value_{p}"]) for p in (20, 50, 80)] == pytest.approx([1.4, 2.0, 2.6])
    assert (first["kernel_provider"], first["kernel_operation_mode"], first["liger_version"]) == (
        "plain", "full", "0.8.5",
    )  # fmt: skip


def test_a_csv_of_others_is_left_alone(tmp_path):
    file = tmp_path / "others.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"others\.csv to be empty or to have our columns, got a,b"):
        append_csv(file, record(), [0.1], None)
    assert file.read_text() == "a,b\n1,2\n"
