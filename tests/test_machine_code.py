"""What the Triton kernels compile to, without a GPU: a representative subset on every card (make check has all), and
the gates themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from benchmarks import machine_code as command
from benchmarks.plan.cards import CARDS as PLAN_CARDS
from expo_kernels.kernels.triton.tuning import CARDS
from tools import marked
from tools.machine_code import gates, occupancy, predicted, reading, report
from tools.machine_code.launches import Launch
from tools.machine_code.loops import CLASSES, Loop, class_of, main_loop

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("card", CARDS)
def test_the_representative_kernels(card):
    """In a process of its own, since interpreted kernels are not compiled."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    words = [sys.executable, "-m", "tools.machine_code", "--quick", "--cards", card]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 break a gate" in done.stdout and "head_tiles" in done.stdout and "pair_terms" in done.stdout
    assert ("head_tiles_persistent" in done.stdout) == (CARDS[card].persistent is not None)
    page = marked.read(command.PAGE, command.LOOPS)
    if page.startswith(f"Triton {triton.__version__}:"):
        # one line a kernel; what differs from the page is a change of the code, and belongs into it
        lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
        assert lines and not [line for line in lines if line not in page], "benchmarks.machine_code --write"


def loop(**counts: int) -> Loop:
    return Loop(dict.fromkeys(CLASSES, 0) | {name.replace("_", " "): count for name, count in counts.items()})


GOOD = reading.Numbers(128, 0, 98_304, 4, 6, loop=loop(matrix=4, async_copy=8, arithmetic=60))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spilled": 8}, "spills"),
        ({"shared_bytes": 240_000}, "shared memory 240000 of 232448; 0 programs a multiprocessor of 2"),
        ({"registers": 129}, "1 programs a multiprocessor of 2"),
        ({"shared_bytes": 120_000}, "1 programs a multiprocessor of 2"),
        ({"main_loop": 0}, "no tensor-core instruction"),
        ({"loop": None}, "no tensor-core instruction in a main loop"),
        ({"async_copies": 0}, "no asynchronous copy"),
        ({"loop": loop(matrix=4, arithmetic=60)}, "no asynchronous copy in the main loop"),
        ({"loop": loop(matrix=4, async_copy=8, arithmetic=100)}, "3.6 % of the main loop are matrix instructions"),
        ({"loop": loop(matrix=4, async_copy=8, arithmetic=50, local=2)}, "local memory in the main loop"),
        ({}, ""),
    ],
    ids=str,
)
def test_the_gates(changes, says):
    launch = Launch("", lambda: None, main_loop=True, field="head")
    broken = "; ".join(gates._broken(GOOD._replace(**changes), launch, CARDS["sm_90"]))
    assert broken.startswith(says) if says else not broken


def test_what_is_rare_must_fit_once():
    launch = Launch("", lambda: None, main_loop=True, field="head", rare=True)
    assert not gates._broken(GOOD._replace(registers=255), launch, CARDS["sm_90"])
    assert gates.wanted_programs(launch._replace(rare=False), CARDS["sm_90"]) == 2
    other = CARDS["sm_90"]._replace(head=CARDS["sm_90"].head._replace(rows=64))
    assert gates.wanted_programs(launch._replace(rare=False), other) == 1, "what is meant is meant of that tile"


def test_every_tile_that_nobody_measured_has_its_intent():
    for card in (card for card in CARDS.values() if not card.measured):
        for field in ("head", "capped", "persistent", "product", "product_persistent", "walk"):
            if (tile := getattr(card, field)) is not None:
                assert occupancy.INTENDED[card.name, field].tile == occupancy.shape_of(tile), (card.name, field)


@pytest.mark.parametrize(
    ("card", "used", "programs"),
    [
        # by hand: 65,536 registers a multiprocessor, in four quarters; a warp takes 32 x registers, in steps of 256
        ("sm_90", {"registers": 128, "shared_bytes": 0, "warps": 8}, 2),
        ("sm_90", {"registers": 129, "shared_bytes": 0, "warps": 8}, 1),  # 136: 3 warps a quarter, 12 in all
        ("sm_90", {"registers": 168, "shared_bytes": 0, "warps": 4}, 3),
        ("sm_90", {"registers": 255, "shared_bytes": 0, "warps": 8}, 1),
        ("sm_90", {"registers": 255, "shared_bytes": 0, "warps": 16}, 0),
        ("sm_90", {"registers": 32, "shared_bytes": 0, "warps": 8}, 8),  # 64 warps
        ("sm_86", {"registers": 32, "shared_bytes": 0, "warps": 8}, 6),  # 48 warps
        ("sm_86", {"registers": 32, "shared_bytes": 0, "warps": 1}, 16),
        ("sm_90", {"registers": 32, "shared_bytes": 227 << 10, "warps": 8}, 1),
        ("sm_90", {"registers": 32, "shared_bytes": 113 << 10, "warps": 8}, 2),  # and a KiB each
        ("sm_80", {"registers": 32, "shared_bytes": 48 << 10, "warps": 8}, 3),
        ("sm_100", {"registers": 32, "shared_bytes": 0, "warps": 4, "tensor_columns": 256}, 2),
        ("gfx942", {"registers": 128, "shared_bytes": 32 << 10, "warps": 8}, 2),
        ("gfx942", {"registers": 136, "shared_bytes": 32 << 10, "warps": 8}, 1),
        ("gfx942", {"registers": 64, "shared_bytes": 64 << 10, "warps": 8}, 1),
    ],
)
def test_programs_a_multiprocessor(card, used, programs):
    assert occupancy.programs(card, **used) == programs


def test_the_limits_are_those_of_the_table():
    for card in CARDS.values():
        limits = occupancy.LIMITS[card.name]
        assert card.shared_bytes + limits.reserved == limits.shared_bytes


# --- the main loop ---------------------------------------------------------------------------------------------------

# a tile's loop around a product's, whose wait was moved behind the end, a loop in front, and a padding one
NVIDIA = """
        /*0000*/               @P0 EXIT ;
.L_x_9:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0020*/               @P1 BRA `(.L_x_9) ;
.L_x_2:
        /*0030*/                   LDG.E R4, [R2] ;
        /*0040*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR12], R24 ;
.L_x_1:
        /*0050*/                   UIADD3 UR10, UR10, 0x1, URZ ;
        /*0060*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR16+0x30000], R174 ;
        /*0070*/              @!P0 BRA `(.L_x_0) ;
.L_x_3:
        /*0080*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR12], R24 ;
        /*0090*/                   BRA.U UP0, `(.L_x_6) ;
        /*00a0*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16], R24, gsb0 ;
.L_x_6:
        /*00b0*/                   @UP0 UTMALDG.2D [UR12], [UR16] ;
        /*00c0*/                   LDS R1, [R2] ;
        /*00d0*/              @!P0 BRA `(.L_x_1) ;
        /*00e0*/                   STG.E [R2], R4 ;
        /*00f0*/              @!P0 BRA `(.L_x_2) ;
        /*0100*/                   EXIT ;
.L_x_0:
        /*0110*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR16+0x30000], R174 ;
        /*0120*/              @!P0 BRA `(.L_x_0) ;
        /*0130*/                   BRA `(.L_x_3) ;
.L_x_4:
        /*0140*/                   BRA `(.L_x_4);
"""
AMD = """
	s_branch .LBB0_2
.LBB0_1:
	v_mfma_f32_32x32x8_bf16 a[0:15], v[2:3], v[4:5], a[0:15]
	ds_read_b128 v[2:5], v1
	s_waitcnt lgkmcnt(0) ; 8-byte
	buffer_load_dwordx4 v[2:5], v1, s[0:3], 0 offen
	v_add_u32_e32 v1, 64, v1
	s_cbranch_scc1 .LBB0_1
	global_store_dwordx4 v1, v[2:5], s[0:1]
	s_endpgm
.LBB0_2:
	s_cbranch_execz .LBB0_1
	s_branch .LBB0_1
"""


def test_the_main_loop_is_the_innermost_with_matrix_instructions():
    found = main_loop(NVIDIA, amd=False)
    # the wait out of line is gone round for itself, and belongs to the loop that waits
    assert found == loop(matrix=2, async_copy=1, shared=1, wait=2, control=5, arithmetic=1)
    assert found.total == 12 and found.share == 2 / 12 and not found.unrolled
    others = {"global": 1}
    assert main_loop(AMD, amd=True) == loop(matrix=1, shared=1, wait=1, control=1, arithmetic=1, **others)


def test_a_loop_that_was_unrolled_and_code_without_any():
    code = "".join(line + "\n" for line in NVIDIA.splitlines() if "BRA" not in line)
    found = main_loop(code, amd=False)
    assert found is not None and found.unrolled and found.counts["matrix"] == 3 and found.total == 5
    assert main_loop(NVIDIA.replace("HGMMA", "FFMA"), amd=False) is None and main_loop("", amd=False) is None


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("HMMA.16816.F32.BF16", "matrix"), ("UTCHMMA", "matrix"), ("LDGSTS.E.BYPASS.128", "async copy"),
        ("LDSM.16.M88.4", "shared"), ("LDTM.x32", "shared"), ("LDG.E.128", "global"), ("STL.64", "local"),
        ("WARPGROUP.ARRIVE", "wait"), ("BAR.SYNC.DEFER_BLOCKING", "wait"), ("BRA.U", "control"),
        ("LDC.64", "arithmetic"), ("MUFU.EX2", "arithmetic"), ("REDUX", "arithmetic"),
    ],
)  # fmt: skip
def test_classes(opcode, kind):
    assert class_of(opcode, amd=False) == kind


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_predicted_times_are_the_page_s():
    assert marked.read(command.PAGE, command.TIMES) == predicted.text(), "benchmarks.machine_code --times --write"
    assert "Predicted, not measured" in predicted.text()


def test_predicted_times_by_hand():
    card, exact = PLAN_CARDS["h200"], predicted.MODES[0]
    G = 2 * 32768 * 4096 * 128256 / (989.4e12 * 0.7)
    found = predicted.predict(exact, 32768, card)
    assert found.library == pytest.approx(3 * G) and found.products == pytest.approx(3 * G)
    logits, vectors, dw = 6 * 32768 * 128256, 40 * 32768 * 4096, 10 * 128256 * 4096
    assert found.rest == pytest.approx((logits + vectors + dw) / (4800e9 * 0.85))
    long = predicted.predict(predicted.MODES[2], 32768, card)
    assert long.products == pytest.approx((3 + 3 / 4) * G)  # of four parts of a pair only the last one is kept
    forward = predicted.predict(predicted.MODES[-1], 32768, card)
    assert forward.products == pytest.approx(G) and forward.rest < found.rest / 1.9


def test_the_main_loops_of_the_page_hold():
    """Every card has its loops, each above its floor; the numbers themselves belong to one version of Triton."""
    page = marked.read(command.PAGE, command.LOOPS)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()[4:]]
    assert {row[0] for row in rows} == {*CARDS} and all(len(row) == len(report.LOOPS) for row in rows)
    for card, kernel, *_, share in rows:
        if kernel in ("gathered_product", "scattered_product", "group_sums"):
            continue  # of the sparse gradient: without a floor
        heads, products = gates.FLOORS[card]
        assert float(share.removesuffix(" %")) / 100 > (products if kernel == "product" else heads) - 5e-4


def test_a_spilling_tile_breaks_its_gate():
    """The reader sees what it should: a tile too large for the card's registers is found out."""
    code = (
        "from tools.machine_code.gates import check; from expo_kernels.kernels.triton.tuning import CARDS, Tiles; "
        "card = CARDS['sm_80']._replace(head=Tiles(256, 256, 32, 4, 3)); "
        "print([row.broken for row in check(card, quick=True) if row.kernel == 'head_tiles'])"
    )
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "spills" in done.stdout, done.stdout + done.stderr


def test_forward_only_is_the_same_program():
    """The sums of a row come from one program, with and without E': another would arrange them otherwise."""
    code = (
        "import torch; from tools.machine_code.compiling import compiling_for; "
        "from tools.machine_code.launches import LLAMA, meta; "
        "from expo_kernels.kernels.triton import tuning; "
        "from expo_kernels.kernels.triton.head import merge, rows; "
        "card, like = tuning.CARDS['sm_90'], meta(512, 4096, dtype=torch.bfloat16); "
        "out = merge.new_results(like, False); "
        "e = meta(512, LLAMA.V, dtype=torch.bfloat16); "
        "found = compiling_for('sm_90'); kernels = found.__enter__(); "
        "product, y = meta(512, LLAMA.V), meta(512, dtype=torch.int64); "
        "[rows.score_logits(product, y, LLAMA.head(), x, like, out, card) for x in (e, None)]; "
        "names = [one.name for one in kernels]; "
        "print(names, all(a.kernel is b.kernel for a, b in zip(kernels[:2], kernels[3:])))"
    )
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    steps = ["row_sums", "row_merge", "row_entries"]
    assert done.stdout.strip() == f"{steps + steps[:2]} True", done.stdout + done.stderr
