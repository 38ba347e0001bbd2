"""The plan: counts and formulas by hand, the trace against itself, and predicted against measured memory."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from benchmarks.plan import validate
from benchmarks.plan.__main__ import main
from benchmarks.plan.cards import CARDS, USABLE, read_ceilings, with_ceilings
from benchmarks.plan.heads import HEADS
from benchmarks.plan.job import Job
from benchmarks.plan.longest import STEP, fits, longest
from benchmarks.plan.peak import BACKWARD, HEAD, Peak, peak
from benchmarks.plan.seconds import Step, step
from benchmarks.plan.tables import columns, markdown, tables
from benchmarks.plan.traced import Body, trace
from benchmarks.plan.validate import BODY_HEAVY, SMALL_WORKSPACE, WIDE, Case, Checked, check, line
from tools import models
from train.memory import estimate

EIGHT = Job(model="llama3-8b", ranks=8, pairs=1, length=8192)
M, N, V, D = 16384, 8192, 128256, 4096
P = 8_030_261_248


def ceiling(device: str, **changes: Any) -> dict[str, Any]:
    return {"bench": "ceilings", "device": device, "dtype": "bf16", "tflops": None, "gb_per_s": None, **changes}


H200 = [
    *(ceiling("NVIDIA H200", what=what, tflops=700.0) for what in ("z = h w'", "dh = z w", "dw = z' h")),
    ceiling("NVIDIA H200", what="z = h w', fp32 out", tflops=500.0),
    ceiling("NVIDIA H200", what="copy", dtype=None, gb_per_s=4200.0),
]


# models


def test_shapes_have_the_published_numbers_of_parameters():
    assert {name: models.shape(name).parameters for name in models.MODELS if name != "small"} == {
        "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "qwen2.5-7b": 7_615_616_512,
        "mistral-7b": 7_248_023_552, "gemma2-2b": 2_614_341_888, "pythia-2.8b": 2_775_208_960,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["llama3-8b", "Llama3-8B", "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-shape"]
)
def test_a_model_has_a_short_name_and_the_hub_s(name):
    assert models.canonical(name) == "llama3-8b"


def test_an_unknown_model_is_an_error_that_lists_what_is_there():
    with pytest.raises(ValueError, match=r"want one of llama3-8b \(meta-llama/.*pythia-2.8b.*small, got 'gpt5'"):
        models.canonical("gpt5")


# the trace


def test_operations_are_those_of_a_llama_and_all_but_one_product_is_made_again():
    """Of a layer: q, o D D; k, v D D / 4; gate, up, down D F. Attention: two products of T T d a head in forward, five
    in backward, half of each under the causal mask. Checkpointing ends before down, whose output nobody kept."""
    layers, S, T, d, F = 2, 2, 64, 128, 448
    config = Case(head="ours", layers=layers).config
    plain, again = (trace(config, S, T, bf16=True, checkpointing=checkpointing) for checkpointing in (False, True))
    layer = 2 * S * T * (2 * d * d + 2 * d * d // 4 + 3 * d * F)
    assert (plain.products, plain.products_back) == (layers * layer, 2 * layers * layer)
    assert again.products_back == 3 * layers * layer - layers * 2 * S * T * d * F
    scores = 2 * S * T * T * d  # of all heads
    assert (plain.attention, plain.attention_back) == (layers * scores, layers * 5 * scores / 2)
    assert again.attention_back == layers * 7 * scores / 2
    assert again.standing < plain.standing and again.moved_back > plain.moved_back > plain.moved > 0


def test_two_layers_and_three_tell_of_five_at_other_lengths():
    def of(layers: int, sequences: int, length: int = 512) -> Any:
        return trace(Case(head="ours", layers=layers).config, sequences, length, bf16=True, checkpointing=True)

    found = Body(512, ((of(2, 2), of(2, 4)), (of(3, 2), of(3, 4))))
    assert found.at(2, 4, 512) == of(2, 4)
    for name, told, traced in zip(found.at(5, 3, 1024)._fields, found.at(5, 3, 1024), of(5, 3, 1024), strict=True):
        assert told == pytest.approx(traced, rel=0.01), name


def test_tracing_takes_no_random_numbers():
    before = torch.get_rng_state()
    trace(Case(head="ours").config, 1, 8, bf16=False, checkpointing=False)
    assert torch.equal(before, torch.get_rng_state())


# heads


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("naive", 2 * V * D + 12 * M * V),
        ("liger", 2 * V * D + 2 * M * D + 8 * M * V + 2 * V * D),  # one pair: all positions
        ("trl", 2 * V * D + 2 * N * D + 2 * 4096 * 32768 + 6 * (V * D + N * D) + 64 * N),
        # handing out dw and dh takes more than the workspace
        ("ours", 2 * V * D + 4 * V * D + 2 * M * D + 64 * N + 2 * (V * D + M * D) + 4 * 4096 * D),
    ],
)
def test_the_memory_of_a_head(name, size):
    assert HEADS[name].memory(EIGHT.shape, EIGHT.run) == size


def test_liger_s_memory_is_one_pair_s_and_the_others_the_batch_s():
    four = dataclasses.replace(EIGHT, pairs=4)
    grown = {
        name: head.memory(four.shape, four.run) - head.memory(EIGHT.shape, EIGHT.run) for name, head in HEADS.items()
    }
    assert grown["naive"] == 3 * 12 * M * V and grown["liger"] == 3 * 2 * M * D


@pytest.mark.parametrize(
    ("name", "trained", "frozen", "rows"), [("naive", 3, 2, M), ("liger", 3, 2, M), ("trl", 4, 3, N), ("ours", 3, 2, N)]
)
def test_the_products_of_a_head(name, trained, frozen, rows):
    head, lighter = HEADS[name], dataclasses.replace(EIGHT, frozen_head=True)
    assert head.operations(EIGHT.shape, EIGHT.run) == trained * 2 * rows * D * V
    assert head.operations(lighter.shape, lighter.run) == frozen * 2 * rows * D * V
    assert head.memory(lighter.shape, lighter.run) < head.memory(EIGHT.shape, EIGHT.run) or name == "naive"


# the peak


def test_the_peak_is_what_stands_and_the_largest_moment():
    made = Peak((("weights", 5), ("gradients", 7)), (("forward", 1), (HEAD, 20), (BACKWARD, 30)), 8, 12)
    assert (made.above, made.total, made.moment) == (30, 42, BACKWARD)
    assert dict(made.parts) == {"weights": 5, "gradients": 7, "activations of the body": 8, HEAD: 12, BACKWARD: 30}


def test_zero_s_shares_are_train_memory_s():
    found, known = peak(EIGHT, "naive"), dict(estimate(EIGHT.shape, EIGHT.run).parts)
    assert dict(found.standing) == {name: size for name, size in known.items() if name != "activations of the body"}
    assert dict(found.standing)["weights"] == P * 2 // 8
    # 32 inputs of layers, and the last norm with its input in fp32
    assert found.activations == pytest.approx(M * (32 * 2 * D + 2 * 2 * D + 4 * D), rel=0.01)


def test_the_longest_pair_fits_and_a_longer_one_does_not():
    for head in HEADS:
        most = longest(EIGHT, head, CARDS["a100-40g"])
        assert most > 0 and fits(dataclasses.replace(EIGHT, length=most), head, CARDS["a100-40g"])
        assert not fits(dataclasses.replace(EIGHT, length=most + STEP), head, CARDS["a100-40g"])
    assert longest(dataclasses.replace(EIGHT, model="llama3-70b"), "ours", CARDS["h200"]) == 0  # 131 GiB of states


# time


def test_the_time_of_a_step_by_hand():
    card = CARDS["a100-80g"]
    parts = dict(step(EIGHT, "trl", card).parts)
    body = P - 2 * V * D - 33 * 2 * D - D + 33 * 2 * D + D  # without embedding and head; norms are no products
    assert parts["body products"] == pytest.approx(6 * body * M / (312e12 * 0.8), rel=1e-3)
    assert parts["head products"] == pytest.approx(4 * 2 * N * D * V / (312e12 * 0.8))
    assert parts["head, other operations"] == pytest.approx(N * V * 6 / (2039e9 * 0.85))
    assert parts["communication"] == pytest.approx(3 * 2 * P * 7 / 8 / (300e9 * 0.8))
    assert parts["optimizer"] == pytest.approx(P / 8 * 28 / (2039e9 * 0.85))
    assert parts["reference"] == 0
    assert dict(step(dataclasses.replace(EIGHT, checkpointing=False), "trl", card).parts)["made again"] == 0


def test_an_engine_and_offloading_cost_time():
    card = CARDS["h100"]
    plain = dict(step(EIGHT, "ours", card).parts)
    engine = dict(step(dataclasses.replace(EIGHT, reference_engine=True), "ours", card).parts)
    assert engine["communication"] == pytest.approx(plain["communication"] * 4 / 3)
    assert engine["reference"] > plain["body products"] / 3
    offloaded = dict(step(dataclasses.replace(EIGHT, offload=True), "ours", card).parts)
    assert offloaded["optimizer"] == pytest.approx(P / 8 * (28 / (76.8e9 * 0.5) + 4 / (64e9 * 0.8)))


def test_communication_hides_behind_computing_or_adds_up():
    made = Step((("body products", 3.0), ("head products", 1.0), ("communication", 5.0), ("optimizer", 0.5)))
    assert (made.compute, made.head, made.hidden, made.serial) == (4.0, 1.0, 5.5, 9.5)


def test_a_ring_between_nodes_shares_all_nics_of_a_node():
    card = CARDS["a100-40g"]
    assert card.link(8) == pytest.approx(240e9) and card.link(16) == pytest.approx(8 * 25e9 * 0.92)


def test_measured_ceilings_replace_the_peaks_of_their_own_card():
    card = with_ceilings(CARDS["h200"], H200)
    assert card.flops == pytest.approx(700e12) and card.bandwidth == pytest.approx(4200e9) and card.measured
    assert with_ceilings(CARDS["h100"], H200) == CARDS["h100"]


@pytest.mark.parametrize("whole", [False, True])
def test_ceilings_are_read_from_lines_and_from_a_results_file(whole, tmp_path):
    path, others = tmp_path / "results", {"bench": "head"}
    text = json.dumps({"records": [others, *H200]}) if whole else "\n".join(map(json.dumps, [others, *H200]))
    path.write_text(text)
    assert read_ceilings(path) == H200


# the command and the tables


def test_the_command_prints_every_head_and_saves_them(tmp_path, capsys):
    file = tmp_path / "plan.jsonl"
    given = ["--model", "meta-llama/Meta-Llama-3-8B-shape", "--gpus", "8", "--gpu", "a100-40g", "--tokens", "16384"]
    assert main([*given, "--save", str(file)]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("predicted", "not validated", "optimizer states", *HEADS))
    saved = [json.loads(text) for text in file.read_text().splitlines()]
    assert [one["provider"] for one in saved] == list(HEADS)
    for one in saved:
        assert (one["bench"], one["state"], one["tokens"], one["scored"]) == ("plan", "predicted", M, N)
        assert one["peak_mib"] == peak(EIGHT, one["provider"]).total / 2**20
        assert one["ms"] == 1e3 * step(EIGHT, one["provider"], CARDS["a100-40g"]).hidden < one["serial_ms"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--gpu", "b300"], "want one of a100-40g, a100-80g, h100, h200, got 'b300'"),
        (["--tokens", "1001"], "want a multiple of two sequences a pair, 2, got 1001"),
        (["--masked", "1"], "want masked from 0 to less than 1, got 1.0"),
        (["--gpus", "0"], "want ranks >= 1, got 0"),
        (["--ceilings", "nowhere"], "No such file"),
    ],
)
def test_what_cannot_be_planned_is_an_error(given, message, capsys):
    with pytest.raises(SystemExit):
        main(given)
    assert message in capsys.readouterr().err


def test_ceilings_of_another_card_are_an_error(tmp_path, capsys):
    path = tmp_path / "lines"
    path.write_text("\n".join(map(json.dumps, H200)))
    with pytest.raises(SystemExit):
        main(["--gpu", "h100", "--ceilings", str(path)])
    assert "want bf16 products and a copy of h100, got NVIDIA H200" in capsys.readouterr().err


def test_the_tables_are_the_same_each_time_and_say_what_they_are():
    made = tables()
    assert made == tables()
    text = "\n".join(made)
    assert "Predicted, not measured" in text and "Time is not validated" in text
    assert "assumed shares of them (`benchmarks/plan/cards.py`): a100-40g, a100-80g, h100, h200" in text
    for model in ("llama3-8b", "llama3-70b"):
        for ranks in (8, 64, 512):
            assert sum(row.startswith(f"| {model} on {ranks} |") for row in made) == 3
    forty = " / ".join(f"{longest(EIGHT, head, CARDS['a100-40g']):,}" for head in HEADS)
    assert f"| llama3-8b on 8 | {forty} |" in text
    assert "| llama3-70b on 8 | - | - | - |" in made


def test_the_tables_tell_what_was_measured():
    checks = [{"bench": validate.BENCH, "ratio": ratio} for ratio in (0.96, 1.07, None)]
    text = "\n".join(tables([*H200, *checks, {"bench": "head"}]))
    assert "measured on h200." in text and "(2 steps, -4.0 % to +7.0 %)" in text
    assert text != "\n".join(tables())


def test_rows_are_set_in_columns_and_in_markdown():
    rows = [["", "a"], ["long", "10"]]
    assert columns(rows) == ["       a", "long  10"]
    assert markdown(rows) == ["|  | a |", "| --- | --- |", "| long | 10 |"]
    assert f"{100 * USABLE:.0f} %" in "\n".join(tables())


# validation: whole steps of small models


@pytest.mark.parametrize(
    "case",
    [
        Case(head="naive"), Case(head="ours"), Case(head="naive", checkpointing=True),
        Case(head="ours", checkpointing=True), Case(head="ours", checkpointing=True, frozen=True),
        Case(head="naive", **BODY_HEAVY), Case(head="ours", **BODY_HEAVY),
        Case(head="naive", checkpointing=True, **BODY_HEAVY), Case(head="ours", checkpointing=True, **BODY_HEAVY),
        Case(head="naive", **WIDE), Case(head="ours", **WIDE), Case(head="ours", **SMALL_WORKSPACE),
        Case(head="ours", bf16=True, checkpointing=True), Case(head="trl", bf16=True, checkpointing=True),
    ],
    ids=str,
)  # fmt: skip
def test_predicted_memory_is_within_a_tenth_of_the_measured(case):
    found = check(case)
    assert found.holds and found.measured is not None, line(found)


def test_both_kinds_of_peak_are_among_the_validated():
    kinds = {
        check(dataclasses.replace(case, head="naive")).moment
        for case in (Case(head="naive"), Case(head="naive", checkpointing=True, layers=1, V=100))
    }
    assert kinds == {HEAD, BACKWARD}


def test_a_wrong_prediction_is_told():
    case = Case(head="ours")
    assert Checked(case, 109, HEAD, 100).holds and Checked(case, 91, HEAD, 100).holds
    wrong = Checked(case, 88, HEAD, 100)
    assert not wrong.holds and "-12.0 %" in line(wrong) and "beyond 10 %" in line(wrong)
    assert "missing: trl is not installed" in line(Checked(Case(head="trl"), 88, HEAD, None))
