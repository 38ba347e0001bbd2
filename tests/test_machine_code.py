"""What the Triton kernels compile to, without a GPU: a representative subset on every card (make check has all), and
the gates themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from expo_kernels.kernels.triton.tuning import CARDS
from tools.machine_code import gates, reading
from tools.machine_code.launches import Launch

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("card", CARDS)
def test_the_representative_kernels(card):
    """In a process of its own, since interpreted kernels are not compiled."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.machine_code", "--quick", "--cards", card]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 break a gate" in done.stdout and "head_tiles" in done.stdout and "pair_terms" in done.stdout
    assert ("head_tiles_persistent" in done.stdout) == (CARDS[card].persistent is not None)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        (reading.Numbers(255, 8, 1000, 4, 6), "spills"),
        (reading.Numbers(255, 0, 240_000, 4, 6), "shared memory"),
        (reading.Numbers(255, 0, 1000, 0, 6), "tensor-core"),
        (reading.Numbers(255, 0, 1000, 4, 0), "asynchronous"),
        (reading.Numbers(255, 0, 1000, 4, 6), None),
    ],
)
def test_the_gates(numbers, says):
    broken = gates._broken(numbers, Launch("", lambda: None, main_loop=True), CARDS["sm_90"])
    assert (says is None and not broken) or (len(broken) == 1 and says in broken[0])


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
    """The row kernel with and without E' is one program: another would arrange its sums, hence its bits, otherwise."""
    code = (
        "import torch; from tools.machine_code.compiling import compiling_for; "
        "from tools.machine_code.launches import LLAMA, meta; "
        "from expo_kernels.kernels.triton import merge, rows, tuning; "
        "card, like = tuning.CARDS['sm_90'], meta(512, 4096, dtype=torch.bfloat16); "
        "out = merge.new_results(like, False); "
        "e = meta(512, LLAMA.V, dtype=torch.bfloat16); "
        "found = compiling_for('sm_90'); kernels = found.__enter__(); "
        "product, y = meta(512, LLAMA.V), meta(512, dtype=torch.int64); "
        "[rows.row_kernel(product, y, LLAMA.head(), x, like, out, card) for x in (e, None)]; "
        "print(len(kernels), kernels[0].kernel is kernels[1].kernel)"
    )
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "2 True", done.stdout + done.stderr
