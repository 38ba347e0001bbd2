"""Measured tiles: what is tried is compiled, checked and only then timed, and only a real card's winners get into the
table, which is a file that the tool writes to the letter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from benchmarks import measure
from benchmarks.gpu import tune
from expo_kernels.kernels.triton import product, tuning
from expo_kernels.kernels.triton.tuning import CARDS, INTERPRETER, cards
from expo_kernels.kernels.triton.tuning.types import Tiles, Walk
from tools.tuning import __main__ as tuning_command
from tools.tuning import candidates, checks, route, search, subjects, table
from tools.tuning.search import Tried

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


def test_the_table_is_what_the_tool_writes():
    """To the letter, and as the formatter wants it."""
    assert table.text(cards.ROWS) == table.FILE.read_text()
    assert subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "-q", str(table.FILE)]).returncode == 0
    assert list(tuning.CARDS.values()) == list(cards.ROWS)


def test_writing_a_row_changes_that_row_alone(tmp_path):
    new = CARDS["sm_90"]._replace(
        fused=True, head=Tiles(64, 256, 32, 4, 3, group=8, slices=1), walk=Walk(2, 1024, 4), persistent=None,
        measured=("head: in 5.00 ms; a card", "walk: in 1.00 ms; a card"),
    )  # fmt: skip
    for file in (tmp_path / "a.py", tmp_path / "b.py"):
        table.write(new, file)
    assert (tmp_path / "a.py").read_text() == (tmp_path / "b.py").read_text()
    space: dict = {}
    exec((tmp_path / "a.py").read_text(), space)
    assert space["ROWS"] == tuple(new if row.name == "sm_90" else row for row in cards.ROWS)
    assert subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "-q", str(file)]).returncode == 0
    with pytest.raises(ValueError, match="want a row of sm_80"):
        table.write(new._replace(name="sm_70"), file)
    with pytest.raises(ValueError, match="without quotes"):
        table.write(new._replace(measured=('a "card"',)), file)


def test_a_row_says_what_was_measured_and_forgets_what_was_before():
    row = tuning_command._measured(CARDS["sm_90"], "walk", "first")
    row = tuning_command._measured(tuning_command._measured(row, "head", "once"), "walk", "second")
    assert [line.split(";")[0] for line in row.measured] == ["head: once", "walk: second"]
    assert measure.environment()["date"] in row.measured[0] and "triton" in row.measured[0]


@pytest.mark.filterwarnings("ignore:expo_kernels. no tiles are known")
def test_only_a_card_with_a_row_of_its_own_is_written(monkeypatch):
    with pytest.raises(SystemExit, match="want a GPU"):
        tuning_command.main(["--write"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(SystemExit, match=r"want a card of sm_80, .*, got sm_89"):
        tuning_command._card(torch.device("cuda"), write=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert tuning_command._card(torch.device("cuda"), write=True) is CARDS["sm_90"]


def test_an_unknown_card_takes_the_nearest_row_and_says_so_once(monkeypatch):
    tuning._say.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        taken = [tuning.card_for(torch.device("cuda")) for _ in range(3)]
    assert taken == [CARDS["sm_86"]] * 3
    assert [str(one.message).split(" (")[0] for one in said] == [
        "expo_kernels: no tiles are known for sm_89, those of sm_86 are taken"
    ]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.card_for(torch.device("cuda")) is CARDS["sm_90"], "a row of its own is nothing to speak of"


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_what_is_tried(card):
    for kernel in candidates.KERNELS:
        shapes = candidates.shapes(card, kernel)
        if kernel in candidates.PERSISTENT and card.name not in candidates.DESCRIPTORS:
            assert not shapes
            continue
        assert shapes[0] == getattr(card, kernel) and len(set(shapes)) == len(shapes) > 10
        for one in [*shapes, *candidates.orders(shapes[-1], kernel)]:
            if isinstance(one, Tiles):
                assert one.columns >= tuning.MIN_COLUMNS and one.columns % one.slices == 0


def timing(seconds: float) -> dict[str, measure.Timing]:
    return {"E'": measure.Timing(seconds, seconds, seconds)}


def test_the_table_keeps_what_is_not_clearly_beaten():
    shipped, close, faster, wrong = (Walk(1, columns, 4) for columns in (128, 256, 512, 1024))
    tried = [Tried("walk", shipped, "", timing(1.0)), Tried("walk", close, "", timing(0.99))]
    assert search.fastest(tried, shipped) == shipped
    tried += [Tried("walk", faster, "", timing(0.9)), Tried("walk", wrong, "two runs differ", {})]
    assert search.fastest(tried, shipped) == faster
    assert search.fastest(tried[1:], shipped) == faster, "what stands in the table may itself be wrong"
    with pytest.raises(RuntimeError, match="no candidate of walk is right: two runs differ"):
        search.fastest(tried[3:], shipped)


def test_a_search_in_the_interpreter(monkeypatch, capsys, tmp_path):
    """All of it on the smallest kernels; nothing is written, every candidate is saved."""
    shapes = candidates.shapes
    monkeypatch.setattr(candidates, "shapes", lambda card, kernel: shapes(card, kernel)[:2])
    monkeypatch.setattr(candidates, "orders", lambda best, kernel: [best])
    monkeypatch.setattr(table, "write", lambda *a: pytest.fail("written without a card"))
    save = tmp_path / "tuning.jsonl"
    tuning_command.main(["--kernels", "walk", "product", "persistent", "--rounds", "1", "--save", str(save)])
    rows = [json.loads(line) for line in save.read_text().splitlines()]
    assert [row["kernel"] for row in rows] == ["walk"] * 2 + ["product"] * 2
    assert sum(row["taken"] for row in rows) == 2 and all(row["ms"] and not row["reason"] for row in rows)
    shown = capsys.readouterr().out
    assert "interpreter has no such kernel" in shown and "not written to" in shown and "<- taken" in shown


class Shaken:
    """The head's way, off by so much where `when` holds."""

    def __init__(self, when, factor: float = 1.001) -> None:
        self.when, self.factor, self.calls, self.right = when, factor, 0, subjects.score

    def __call__(self, made, row, kernel, e, *, stats: bool = False):
        self.calls += 1
        found = self.right(made, row, kernel, e, stats=stats)
        return found._replace(logp=found.logp * self.factor) if self.when(self, made, e) else found


@pytest.mark.parametrize(
    ("when", "factor", "says"),
    [
        (lambda self, made, e: False, 1.0, ""),
        (lambda self, made, e: True, 1.001, "trained: log-probs are off by"),
        (lambda self, made, e: self.calls == 2, 1 + 1e-6, "two runs differ"),
        (lambda self, made, e: e is None, 1 + 1e-6, "forward only has other bits"),
        (lambda self, made, e: made.h.shape[0] == 7, 1 + 1e-6, "7 rows alone have other bits"),
    ],
    ids=["right", "float64", "rerun", "forward", "neighbours"],
)
def test_what_a_check_finds(when, factor, says, monkeypatch):
    on = checks.checked("walk", CPU)
    monkeypatch.setattr(checks, "score", Shaken(when, factor))
    found = checks.wrong("walk", INTERPRETER, on)
    assert (says in found) if says else not found


def test_a_wrong_candidate_is_never_timed(monkeypatch):
    right, wrong = Walk(32, 256, 4), Walk(16, 256, 4)
    monkeypatch.setattr(checks, "wrong", lambda kernel, row, on: "it is wrong" if row.walk == wrong else "")
    timed: list[Walk] = []
    steps = subjects.steps
    monkeypatch.setattr(
        subjects, "steps", lambda kernel, made, row: (timed.append(row.walk), steps(kernel, made, row))[1]
    )
    tried = search.try_all(INTERPRETER, "walk", [right, wrong], CPU, warmup=0.0, rounds=1)
    assert timed == [right] and [one.reason for one in tried] == ["", "it is wrong"] and not tried[1].steps


def test_the_route_is_the_fastest_that_is_right(monkeypatch):
    """Times of our own making: library 10, fused 8 and descriptors 9 of every head."""
    card = CARDS["sm_90"]
    costs = {"library": 10.0, "fused": 8.0, "descriptors": 9.0}
    monkeypatch.setattr(checks, "checked", lambda kernel, device: kernel)
    monkeypatch.setattr(checks, "wrong", lambda kernel, row, on: "")
    monkeypatch.setattr(measure, "interleaved", lambda steps, **more: {
        name: measure.Timing(*[costs[name.split(",")[0]]] * 3) for name in steps
    })  # fmt: skip
    assert route.choose(card, CPU, warmup=0.0).card == card._replace(fused=True, persistent=None)
    monkeypatch.setattr(checks, "wrong", lambda kernel, row, on: "off" if kernel == "head" else "")
    found = route.choose(card, CPU, warmup=0.0)
    assert found.card == card._replace(fused=True) and found.refused == {"fused": "off"}
    costs["descriptors"] = 9.9
    assert route.choose(card, CPU, warmup=0.0).card == card, "one per cent is no reason"


def test_whose_products_are_taken(monkeypatch):
    """Times of our own making: the library's 10 of each product, ours 9 and then 9.9."""
    card, costs = CARDS["sm_90"], {"library": 10.0, "ours": 9.0}
    monkeypatch.setattr(checks, "wrong", lambda kernel, row, on: "")
    monkeypatch.setattr(product, "library_has_it", lambda *a, **k: True)
    monkeypatch.setattr(measure, "interleaved", lambda steps, **more: {
        name: measure.Timing(*[costs[name.split(",")[0]]] * 3) for name in steps
    })  # fmt: skip
    found = route.choose_products(card, CPU, warmup=0.0)
    assert found.card == card._replace(own_products=True) and found.seconds["llama", "ours"] == 27.0
    costs["ours"] = 9.9
    assert route.choose_products(found.card, CPU, warmup=0.0).card == card, "one per cent is no reason"
    costs["ours"] = 9.0
    monkeypatch.setattr(checks, "wrong", lambda kernel, row, on: "off")
    assert route.choose_products(card, CPU, warmup=0.0).card == card
    monkeypatch.setattr(product, "library_has_it", lambda *a, **k: False)
    assert route.choose_products(card, CPU, warmup=0.0).card == card, "ours is taken anyway where there is no other"


def test_products_in_the_interpreter(capsys):
    """The library has none for a CPU's 16 bits: ours is timed alone."""
    tuning_command.main(["--kernels", "products", "--rounds", "1"])
    shown = capsys.readouterr().out
    assert "library: the library has none here" in shown and "llama" in shown


def test_candidates_are_held_against_the_gates():
    """In a process of its own, since interpreted kernels are not compiled."""
    code = (
        "from expo_kernels.kernels.triton.tuning import CARDS; from expo_kernels.kernels.triton.tuning.types import *; "
        "from tools.tuning import gates; card = CARDS['sm_80']; "
        "print(repr(gates.first_broken(card._replace(walk=Walk(2, 2048, 8)), 'walk', False))); "
        "print(gates.first_broken(card._replace(walk=Walk(4, 4096, 2)), 'walk', False))"
    )
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    right, broken = done.stdout.splitlines()
    assert right == "''" and "spills" in broken, done.stdout + done.stderr


def test_every_kernel_is_a_part_of_gpu_tune():
    assert {*tune.KERNELS} == {*candidates.KERNELS}
    assert [*tune.ROUTES] == [tuning_command.PRODUCTS, tuning_command.ROUTE]


def test_every_device_has_a_card():
    assert tuning.nearest(8, 0) == "sm_80" and tuning.nearest(8, 9) == "sm_86" and tuning.nearest(9, 0) == "sm_90"
    assert tuning.nearest(10, 0) == "sm_100" and tuning.nearest(10, 3) == "sm_100" and tuning.nearest(12, 0) == "sm_86"
    for card in tuning.CARDS.values():
        for tiles in (card.head, card.capped, card.small, card.persistent or card.head):
            assert tiles.columns >= tuning.MIN_COLUMNS and tiles.columns % tiles.slices == 0
    few = torch.zeros(4, 32, dtype=torch.bfloat16)
    card = tuning.CARDS["sm_90"]
    assert card.head_tiles(None, few) is card.head and card.head_tiles(30.0, few) is card.capped
    assert card.head_tiles(None, few[:, :20].contiguous()) is card.small
    assert card.head_tiles(None, few.float()) is card.small
    assert tuning.card_for(torch.device("cpu")) is tuning.INTERPRETER
