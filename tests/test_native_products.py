"""Our own products (csrc/cpu/product.cpp) against float64, and which of them bf16 inputs get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expo_kernels import Execution, token_logprob
from expo_kernels.kernels.native import csrc, products
from expo_kernels.kernels.plain.budget import budget
from expo_kernels.layout import from_packed

ROOT = Path(__file__).parent.parent
ROOM = 1 << 24
SIZES = budget(64, 300, torch.bfloat16, 1 << 20)
built = pytest.mark.skipif(bool(csrc.problem()), reason=csrc.problem() or "-")
LEVEL = -1 if csrc.problem() else csrc.LEVELS.index(csrc.level())
NEEDS = {torch.float32: "avx512", torch.bfloat16: "avx512_bf16"}
DTYPES = [
    pytest.param(
        dtype, id=str(dtype),
        marks=pytest.mark.skipif(csrc.LEVELS.index(need) > LEVEL, reason=f"this processor has no {need}"),
    )
    for dtype, need in NEEDS.items()
]  # fmt: skip
SHAPES = [(1, 1, 1), (6, 64, 32), (7, 65, 33), (5, 3, 2), (97, 130, 1025), (1100, 70, 17), (13, 200, 4099), (3, 5, 0)]


def off_by(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm().clamp(min=1e-300))


def matrix(rows: int, columns: int, dtype: torch.dtype, turned: bool) -> Tensor:
    """A part of a larger one, so that its rows or columns do not touch."""
    if turned:
        return torch.randn(columns + 1, rows + 3).to(dtype)[1:, 2 : rows + 2].T
    return torch.randn(rows + 1, columns + 3).to(dtype)[1:, 2 : columns + 2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_against_float64(shape, turned, dtype):
    """As exact as the library's own fp32 product, and nothing beside the result is written."""
    M, N, K = shape
    a, b = matrix(M, K, dtype, turned[0]), matrix(K, N, dtype, turned[1])
    exact = a.double() @ b.double()
    around = torch.randn(M + 2, N + 2)
    for adds in (False, True):
        out = around.clone()
        csrc.ops().product(a, b, out[1:-1, 1:-1], adds, ROOM)
        before = around[1:-1, 1:-1].double() if adds else 0.0
        library = before + a.float() @ b.float()
        assert off_by(out[1:-1, 1:-1], before + exact) <= 1.25 * off_by(library, before + exact) + 1e-7
        out[1:-1, 1:-1] = around[1:-1, 1:-1]
        assert torch.equal(out, around)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_sum_is_as_exact_as_the_librarys(dtype):
    a, b, out = torch.rand(48, 32000).to(dtype), torch.randn(32000, 96).to(dtype), torch.empty(48, 96)
    csrc.ops().product(a, b, out, False, ROOM)
    exact = a.double() @ b.double()
    assert off_by(out, exact) < 1.25 * off_by(a.float() @ b.float(), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_on_the_numbers_of_a_sum_alone(dtype):
    """Not on threads, on room, nor on what other rows and columns there are."""
    a, b = torch.randn(211, 3000).to(dtype), torch.randn(3000, 333).to(dtype)
    want, threads = torch.empty(211, 333), torch.get_num_threads()
    csrc.ops().product(a, b, want, False, ROOM)
    try:
        for count, room in ((1, ROOM), (2, 1), (5, 300_000), (40, ROOM)):
            torch.set_num_threads(count)
            for rows, columns in (
                (slice(0, 211), slice(0, 333)),
                (slice(5, 6), slice(7, 133)),
                (slice(90, 211), slice(64, 65)),
            ):
                out = torch.empty_like(want[rows, columns])
                csrc.ops().product(a[rows], b[:, columns], out, False, room)
                assert torch.equal(out, want[rows, columns]), (count, room, rows, columns)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_in_its_row_and_column(dtype):
    a, b, out = torch.randn(9, 40).to(dtype), torch.randn(40, 70).to(dtype), torch.empty(9, 70)
    a[2, 39], b[5, 66] = torch.nan, torch.inf
    csrc.ops().product(a, b, out, False, ROOM)
    bad = torch.zeros(9, 70, dtype=torch.bool)
    bad[2], bad[:, 66] = True, True
    assert torch.equal(~out.isfinite(), bad)


WRONG = {
    "lengths differ": (torch.zeros(2, 3), torch.zeros(4, 5), torch.zeros(2, 5)),
    "dtypes differ": (torch.zeros(2, 3), torch.zeros(3, 5).bfloat16(), torch.zeros(2, 5)),
    "float64": (torch.zeros(2, 3).double(), torch.zeros(3, 5).double(), torch.zeros(2, 5)),
    "numbers apart": (torch.zeros(4, 6)[::2, ::2], torch.zeros(3, 5), torch.zeros(2, 5)),
    "out too small": (torch.zeros(2, 3), torch.zeros(3, 5), torch.zeros(2, 4)),
    "out in bf16": (torch.zeros(2, 3), torch.zeros(3, 5), torch.zeros(2, 5).bfloat16()),
    "out turned": (torch.zeros(2, 3), torch.zeros(3, 5), torch.zeros(5, 2).T),
    "a vector": (torch.zeros(3), torch.zeros(3, 5), torch.zeros(5)),
}


@built
@pytest.mark.parametrize("operands", WRONG.values(), ids=WRONG.keys())
def test_a_bad_argument_is_an_error(operands):
    with pytest.raises(RuntimeError, match="product: want"):
        csrc.ops().product(*operands, False, ROOM)


@built
def test_instructions_that_are_not_there_are_an_error():
    code = (
        "import torch; from expo_kernels.kernels.native import csrc\n"
        "csrc.ops().product(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2), False, 1)"
    )
    env = {**os.environ, "EXPO_KERNELS_SIMD": "portable"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "want vector instructions that this processor has not" in done.stderr


NO_ROOM = """
import resource
import torch
from expo_kernels.kernels.native import csrc

def product(rows, size):
    a, b, out = torch.ones(rows, size), torch.ones(size, rows), torch.empty(rows, rows)
    return lambda: bool(csrc.ops().product(a, b, out, False, 1 << 24) is None and (out == size).all())

small, large = product(6, 8), product(1100, 2048)
assert small() and large()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = (int(status["VmSize"].split()[0]) << 10) + (1 << 20)  # what is packed takes 8 MB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    large()
except MemoryError:
    print("refused")
assert small()
print("goes on")
"""


@built
@pytest.mark.skipif(csrc.LEVELS.index("avx512") > LEVEL, reason="this processor has no avx512")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer ends it where new fails")
def test_an_allocation_that_fails_is_an_error_and_the_process_goes_on():
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run([sys.executable, "-c", NO_ROOM], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["refused", "goes on"]


def a_head() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> h [40, 64], w [300, 64] in bf16, labels, and the exact log-probs."""
    h, w, y = torch.randn(40, 64).bfloat16(), torch.randn(300, 64).bfloat16(), torch.randint(300, (40,))
    return h, w, y, torch.log_softmax(h.double() @ w.double().T, -1).gather(1, y[:, None])[:, 0]


def error_of(h: Tensor, w: Tensor, y: Tensor, exact: Tensor) -> float:
    batch = from_packed(y, torch.tensor([0, len(y)]), roles=1)
    return off_by(token_logprob(h, w, batch, execution=Execution(backend="native")), exact)


@built
def test_logits_are_in_fp32_unless_bf16_is_asked_for(monkeypatch):
    head = a_head()
    assert error_of(*head) < 1e-6
    monkeypatch.setenv(products.VARIABLE, "fp32")
    assert error_of(*head) < 1e-6
    monkeypatch.setenv(products.VARIABLE, "bf16")
    assert 1e-4 < error_of(*head) < 1e-2, "the logits are rounded to bf16"
    monkeypatch.setenv(products.VARIABLE, "fp8")
    with pytest.raises(ValueError, match="EXPO_KERNELS_NATIVE_PRODUCTS: want mixed, fp32 or bf16, got 'fp8'"):
        error_of(*head)


@built
def test_a_choice_for_every_processor(monkeypatch):
    def chosen(dtype):
        made = products.products_of(dtype, SIZES)
        return type(made).__name__, made.operands

    monkeypatch.delenv(products.VARIABLE, raising=False)
    for lags, fp32 in ((True, ("Own", torch.float32)), (False, ("Library", torch.float32))):
        monkeypatch.setattr(csrc, "library_lags", lambda lags=lags: lags)
        monkeypatch.setattr(csrc, "multiplies_bf16", lambda: True)
        assert chosen(torch.bfloat16) == ("Own", torch.bfloat16)
        assert chosen(torch.float32) == chosen(torch.float16) == fp32
        monkeypatch.setattr(csrc, "multiplies_bf16", lambda: False)
        assert chosen(torch.bfloat16) == fp32
    monkeypatch.setenv(products.VARIABLE, "mixed")
    assert chosen(torch.float32) == ("Library", torch.float32), "it is for bf16 inputs"
    with pytest.raises(NotImplementedError, match="want a processor with AVX-512's bf16 instructions"):
        chosen(torch.bfloat16)
