"""The C++ kernels, one operation after the other, at every level of vector instructions; for parity test_parity.py."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from expo_kernels.fused_expo_loss import expo_loss
from expo_kernels.kernels.native import csrc

ROOT = Path(__file__).parent.parent
NAN, INF = math.nan, math.inf

built = pytest.mark.skipif(bool(csrc.problem()), reason=csrc.problem() or "-")


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="there is no compiler")
def test_they_are_built_where_there_is_a_compiler():
    assert csrc.problem() == "", "run make setup"


class Rows(NamedTuple):
    logp: Tensor
    inverse: Tensor
    pull: Tensor
    entropy: Tensor
    is_argmax: Tensor
    stored: Tensor


def scored(z, y, *, bias=None, softcap=0.0, scale=1.0, stored=torch.float32) -> Rows:
    e = torch.full(z.shape, 7.0, dtype=stored)
    numbers, is_argmax = torch.empty(4, len(z)), torch.empty(len(z), dtype=torch.bool)
    csrc.ops().score_rows(z, y, bias, softcap, scale, e, numbers, is_argmax)
    return Rows(*numbers, is_argmax, e)


class Exact(NamedTuple):
    logp: Tensor
    entropy: Tensor
    is_argmax: Tensor
    gradient: Tensor  # [n, V] d logp / da


def exactly(z, y, *, bias=None, softcap=0.0, scale=1.0) -> Exact:
    a = (scale * (z.double() + (0 if bias is None else bias.double()))).requires_grad_()
    x = softcap * torch.tanh(a / softcap) if softcap else a
    logps = torch.log_softmax(x, -1)
    logp = logps.gather(1, y[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(logp.sum(), a)
    p = logps.detach().exp()
    entropy = -torch.where(p > 0, p * logps.detach(), 0.0).sum(-1)
    return Exact(logp.detach(), entropy, x.gather(1, y[:, None])[:, 0] >= x.amax(-1), gradient)


def off_by(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm().clamp(min=1e-300))


def gradient_of(made: Rows, y: Tensor) -> Tensor:
    """As backprop puts it together."""
    at = torch.arange(len(y))
    assert (made.stored[at, y] == 0).all()
    whole = -made.inverse.double()[:, None] * made.stored.double()
    whole[at, y] = made.pull.double()
    return whole


CASES = {
    "ragged": {"n": 33, "V": 1003, "std": 3.0},
    "less than a vector": {"n": 9, "V": 3, "std": 2.0},
    "one token": {"n": 4, "V": 1, "std": 1.0},
    "long": {"n": 3, "V": 70001, "std": 1.0},
    "bias, cap, scale": {"n": 17, "V": 517, "std": 20.0, "bias": True, "softcap": 30.0, "scale": 0.7},
    "cap bites": {"n": 17, "V": 64, "std": 12.0, "softcap": 5.0},
}


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rows_against_float64(case, dtype):
    n, V = case["n"], case["V"]
    z, y = (torch.randn(n, V) * case["std"]).to(dtype), torch.randint(V, (n,))
    y[0] = z[0].argmax()
    head = {key: case[key] for key in ("softcap", "scale") if key in case}
    bias = torch.randn(V) if case.get("bias") else None
    want = exactly(z, y, bias=bias, **head)
    for stored, allowed in ((torch.float32, 4e-7), (torch.bfloat16, 2**-8)):
        made = scored(z, y, bias=bias, stored=stored, **head)
        assert off_by(made.logp, want.logp) < 4e-7 and off_by(made.entropy, want.entropy) < 3e-6
        assert torch.equal(made.is_argmax, want.is_argmax)
        assert off_by(gradient_of(made, y), want.gradient) < allowed


@built
def test_a_label_from_certain_to_impossible():
    gaps = torch.tensor([200.0, 90.0, 60.0, 20.0, 1.0, 0.0, -1.0, -20.0, -90.0, -300.0, -1e4])
    z = torch.zeros(len(gaps), 50)
    y = torch.full((len(gaps),), 7)
    z[:, 7] = gaps
    made = scored(z, y)
    nll = torch.tensor([math.log1p(49 * math.exp(-gap)) if gap > -50 else math.log(49) - gap for gap in gaps.tolist()])
    assert torch.allclose(-made.logp, nll, rtol=3e-7, atol=1e-45), "nll keeps its digits"
    assert torch.allclose(made.pull.double(), 49 / (49 + gaps.double().exp()), rtol=3e-7, atol=1e-45)
    assert made.is_argmax.tolist() == [gap >= 0 for gap in gaps.tolist()]


@built
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_what_is_not_finite_makes_its_own_row_nan(softcap):
    z, y = torch.randn(8, 37), torch.full((8,), 3)
    z[0, 3], z[1, 9], z[2, 36], z[3, 3], z[4, 9] = NAN, NAN, INF, INF, -INF
    z[5] = NAN
    made = scored(z, y, softcap=softcap)
    bad = [0, 1, 2, 3, 5] + ([4] if softcap else [])  # -inf is a token that cannot come, but a cap hides it
    for name in ("logp", "inverse", "pull", "entropy"):
        assert getattr(made, name).isnan().nonzero()[:, 0].tolist() == sorted(bad), name
    label = scored(torch.tensor([[0.0, -INF]]), torch.tensor([1]))
    assert label.logp.isnan().all()
    alone = scored(torch.tensor([[-INF, 2.0, -INF]]), torch.tensor([1]))
    assert (alone.logp == 0).all() and (alone.pull == 0).all() and (alone.stored == 0).all()
    assert (alone.entropy == 0).all() and alone.is_argmax.all()


@built
def test_a_row_depends_on_itself_alone():
    z, y = torch.randn(12, 301), torch.randint(301, (12,))
    whole = scored(z, y, stored=torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        for count, rows in ((1, slice(0, 12)), (2, slice(3, 10)), (3, slice(11, 12))):
            torch.set_num_threads(count)
            part = scored(z[rows], y[rows], stored=torch.bfloat16)
            assert all(torch.equal(a[rows], b) for a, b in zip(whole, part, strict=True))
    finally:
        torch.set_num_threads(threads)


@built
def test_rounding_to_bf16_is_to_nearest_even():
    """What is stored is torch's own cast of what is stored in fp32."""
    z, y = torch.randn(40, 997) * 4, torch.randint(997, (40,))
    wide, narrow = scored(z, y), scored(z, y, stored=torch.bfloat16)
    assert torch.equal(wide.stored.bfloat16(), narrow.stored)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("D", [1, 7, 64, 131])
def test_labels_parts_by_rows(dtype, D):
    n, V = 50, 9
    w, h, y = torch.randn(V, D).to(dtype), torch.randn(n, D).to(dtype), torch.randint(V, (n,))
    h.view(-1)[0] = 6e-6  # a subnormal number in fp16
    crowd, label, dh, dw = torch.randn(n), torch.randn(n), torch.randn(n, D), torch.randn(V, D)
    want = crowd.double()[:, None] * dh + label.double()[:, None] * w[y].double()
    csrc.ops().finish_rows(dh, crowd, label, w, y)
    assert off_by(dh, want) < 2e-7
    want = dw.double().index_add(0, y, label.double()[:, None] * h.double())
    again = dw.clone()
    csrc.ops().add_rows(dw, y, h, label)
    assert off_by(dw, want) < 1e-6
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    csrc.ops().add_rows(again, y, h, label)
    torch.set_num_threads(threads)
    assert torch.equal(dw, again), "in order, whoever does it"
    plain = torch.zeros(V, D)
    csrc.ops().add_rows(plain, y, h, None)
    assert off_by(plain, torch.zeros(V, D, dtype=torch.float64).index_add(0, y, h.double())) < 1e-6


@built
def test_segments():
    values, offsets, sums = torch.randn(1000), torch.tensor([0, 0, 10, 999, 1000]), torch.empty(4)
    csrc.ops().segment_sum(values, offsets, sums)
    want = [values[a:b].double().sum().float() for a, b in itertools.pairwise(offsets.tolist())]
    assert torch.equal(sums, torch.stack(want))


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("V", [1, 5, 64, 1031])
def test_what_a_sparse_gradient_asks_of_columns(dtype, V):
    n = 37
    e = torch.rand(n, V).to(dtype)
    e[:, ::3] = 0
    f, g, out = torch.rand(n), torch.rand(n), torch.empty(3, V)
    csrc.ops().column_sums(e, f, g, out)
    weighted = e.double() * f.double()[:, None]
    want = torch.stack([weighted.square().sum(0), (e.double() * g.double()[:, None]).sum(0), weighted.amax(0)])
    assert off_by(out, want) < 1e-6
    again = torch.empty(3, V)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    csrc.ops().column_sums(e, f, g, again)
    torch.set_num_threads(threads)
    assert torch.equal(out, again)
    for groups in (2, 7):
        group, sums = torch.randint(groups, (V,)), torch.empty(n, groups)
        csrc.ops().group_sums(e, group, sums)
        assert off_by(sums, torch.zeros(n, groups, dtype=torch.float64).index_add(1, group, e.double())) < 1e-6
    columns = torch.randperm(V)[: max(V // 2, 1)]
    to = torch.empty(n, len(columns))
    csrc.ops().gather_columns(e, columns, to)
    assert torch.equal(to, e[:, columns].float())
    as_is = torch.empty(n, len(columns), dtype=dtype)
    csrc.ops().gather_columns(e, columns, as_is)
    assert torch.equal(as_is, e[:, columns])


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("D", [1, 7, 64, 131])
def test_rows_are_gathered(dtype, D):
    w, index, factor = torch.randn(9, D).to(dtype), torch.tensor([8, 0, 3, 3]), torch.randn(4)
    to = torch.empty(4, D)
    csrc.ops().gather_rows(w, index, factor, to)
    assert torch.equal(to, w[index].float() * factor[:, None])
    csrc.ops().gather_rows(w, index, None, to)
    assert torch.equal(to, w[index].float())
    narrow = torch.empty(4, D, dtype=torch.bfloat16)
    csrc.ops().gather_rows(w, index, factor, narrow)
    assert torch.equal(narrow, (w[index].float() * factor[:, None]).bfloat16())


WRONG = {
    "labels too few": lambda o: o.score_rows(Z, Y[:3], None, 0.0, 1.0, None, NUMBERS, None),
    "label too large": lambda o: o.score_rows(Z, Y + 9, None, 0.0, 1.0, None, NUMBERS, None),
    "label below 0": lambda o: o.score_rows(Z, Y - 1, None, 0.0, 1.0, None, NUMBERS, None),
    "labels of 32 bits": lambda o: o.score_rows(Z, Y.int(), None, 0.0, 1.0, None, NUMBERS, None),
    "float64": lambda o: o.score_rows(Z.double(), Y, None, 0.0, 1.0, None, NUMBERS, None),
    "columns apart": lambda o: o.score_rows(torch.zeros(9, 4).T, Y, None, 0.0, 1.0, None, NUMBERS, None),
    "stored too small": lambda o: o.score_rows(Z, Y, None, 0.0, 1.0, Z[:, :8].clone(), NUMBERS, None),
    "bias of another size": lambda o: o.score_rows(Z, Y, torch.zeros(3), 0.0, 1.0, None, NUMBERS, None),
    "no room for results": lambda o: o.score_rows(Z, Y, None, 0.0, 1.0, None, NUMBERS[:3].clone(), None),
    "no tokens": lambda o: o.score_rows(Z[:, :0], Y, None, 0.0, 1.0, None, NUMBERS, None),
    "index too large": lambda o: o.add_rows(torch.zeros(2, 3), torch.tensor([2]), torch.zeros(1, 3), None),
    "widths differ": lambda o: o.add_rows(torch.zeros(2, 3), torch.tensor([1]), torch.zeros(1, 4), None),
    "factors too many": lambda o: o.add_rows(torch.zeros(2, 3), torch.tensor([1]), torch.zeros(1, 3), torch.ones(2)),
    "dh and w differ": lambda o: o.finish_rows(Z.clone(), Y.float(), Y.float(), torch.zeros(2, 3), Y),
    "columns beyond the end": lambda o: o.gather_columns(Z, torch.tensor([9]), torch.zeros(4, 1)),
    "other numbers": lambda o: o.gather_columns(Z, torch.tensor([0]), torch.zeros(4, 1).bfloat16()),
    "sums too few": lambda o: o.column_sums(Z, Y.float(), Y.float(), torch.zeros(2, 9)),
    "factors of another size": lambda o: o.column_sums(Z, Y.float()[:3], Y.float(), torch.zeros(3, 9)),
    "a group beyond the end": lambda o: o.group_sums(Z, torch.full((9,), 2), torch.zeros(4, 2)),
    "groups too few": lambda o: o.group_sums(Z, torch.zeros(8, dtype=torch.long), torch.zeros(4, 2)),
    "a row beyond the end": lambda o: o.gather_rows(Z, torch.tensor([4]), None, torch.zeros(1, 9)),
    "offsets beyond the end": lambda o: o.segment_sum(torch.zeros(3), torch.tensor([0, 4]), torch.zeros(1)),
    "falling offsets": lambda o: o.segment_sum(torch.zeros(3), torch.tensor([0, 3, 2]), torch.zeros(2)),
}
Z, Y, NUMBERS = torch.zeros(4, 9), torch.zeros(4, dtype=torch.long), torch.zeros(4, 4)


@built
@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG.keys())
def test_a_bad_argument_is_an_error_and_the_process_goes_on(call):
    with pytest.raises(RuntimeError, match="want"):
        call(csrc.ops())
    assert scored(Z, Y).logp.isfinite().all()


NO_ROOM = """
import resource
import torch
from expo_kernels.fused_expo_loss import expo_loss

def loss(T, V):
    h, w = torch.randn(2, T, 16, requires_grad=True), torch.randn(V, 16, requires_grad=True)
    expo_loss(h, w, torch.zeros(2, T, dtype=torch.long), variant="comp", lam=0.1, backend="native").loss.backward()
    return h.grad

assert loss(3, 50).isfinite().all()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = (int(status["VmSize"].split()[0]) << 10) + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    loss(300, 500_000)  # a block of logits alone is 1.2 GB
except RuntimeError as error:
    print("refused:", " ".join(str(error).split()))
assert loss(3, 50).isfinite().all()
print("goes on")
"""


@built
def test_an_allocation_that_fails_is_an_error_and_the_process_goes_on():
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", NO_ROOM], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "refused: " in done.stdout and "memory" in done.stdout and "goes on" in done.stdout


AT_A_LEVEL = """
import torch
from expo_kernels import Execution, token_logprob
from expo_kernels.fused_expo_loss import expo_loss
from expo_kernels.kernels.native import csrc, products
from expo_kernels.layout import from_packed
from expo_kernels.fused_expo_loss import expo_loss
torch.manual_seed(0)
out = []
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    h, w = torch.randn(4, 5, 24).to(dtype).requires_grad_(), torch.randn(77, 24).to(dtype).requires_grad_()
    made = expo_loss(h, w, torch.randint(77, (4, 5)), variant="comp", lam=0.1, softcap=5.0, backend="native")
    made.loss.backward()
    out += [made.loss.detach().float(), h.grad.float(), w.grad.float()]
print(csrc.level())
torch.save(out, PATH)
"""


@built
def test_every_level_that_this_processor_has(tmp_path):
    """The best one is what every other test runs on."""
    best = csrc.level()
    made = {}
    for level in csrc.LEVELS[: csrc.LEVELS.index(best) + 1]:
        code = AT_A_LEVEL.replace("PATH", repr(str(tmp_path / level)))
        env = {**os.environ, "EXPO_KERNELS_SIMD": level}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == level
        made[level] = torch.load(tmp_path / level)
    for found in made.values():
        for a, b, dtype in zip(found, made[best], [torch.float32] * 3 + [torch.bfloat16] * 6, strict=True):
            assert off_by(a, b.double()) < (1e-6 if dtype == torch.float32 else 2**-7)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_thread_counts_agree_to_rounding(dtype):
    made, threads = [], torch.get_num_threads()
    for count in (1, 2, 4):
        torch.manual_seed(0)
        h, w = torch.randn(8, 50, 72).to(dtype).requires_grad_(), torch.randn(999, 72).to(dtype).requires_grad_()
        labels = torch.randint(999, (8, 50))
        torch.set_num_threads(count)
        try:
            out = expo_loss(h, w, labels, variant="comp", lam=0.1, backend="native")
            out.loss.backward()
        finally:
            torch.set_num_threads(threads)
        made.append((out.loss.detach(), h.grad, w.grad))
    allowed = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for others in made[1:]:
        for a, b in zip(others, made[0], strict=True):
            assert off_by(a, b.double()) <= (1e-6 if a.dtype == torch.float32 else allowed)


@built
def test_an_unknown_level_is_an_error_that_says_what_there_is():
    env = {**os.environ, "EXPO_KERNELS_SIMD": "mmx"}
    done = subprocess.run([sys.executable, "-m", "expo_kernels"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and "EXPO_KERNELS_SIMD: want portable, avx2, avx512 or avx512_bf16, up to the" in done.stdout
    )


def test_without_them_plain_serves(tmp_path):
    """As a machine without a compiler sees it: the package is there, the compiled file is not."""
    shutil.copytree(ROOT / "expo_kernels", tmp_path / "expo_kernels", ignore=shutil.ignore_patterns("*.so"))
    env = {key: value for key, value in os.environ.items() if not key.startswith("EXPO_KERNELS_")}
    done = subprocess.run([sys.executable, "-m", "expo_kernels"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "backend plain" in done.stdout and "were not built" in done.stdout
