"""The benchmarks' providers: all compute one loss, each as its user would, and say why where they cannot."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cases import Setting
from benchmarks.measured import in_float64, judge
from benchmarks.providers import MODES, PROVIDERS, step, workload
from benchmarks.providers.contract import BETA, LOOSE, STRICT
from expo_kernels import reference
from expo_kernels.objectives import make_objective

ROOT = Path(__file__).parent.parent
SETTING = Setting(model="32x500", tokens=96, pairs=3, masked=0.4, dtype="fp32")
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing on a CPU")
WITHOUT = """
import sys
for name in ("triton", "transformers", "trl", "liger_kernel", "cut_cross_entropy", "quack", "numpy", "deepspeed"):
    sys.modules[name] = None
from benchmarks import bench_head, bench_memory, bench_scaling
from benchmarks.cases import Setting
from benchmarks.measured import in_float64, judge
names = ["naive", "plain", "trl", "liger-preference", "liger-scaled-ce", "cut-ce-compile"]
for name, verdict in judge(names, Setting(model="32x500", tokens=64, pairs=2, dtype="fp32"), "step").items():
    print(name, verdict.state, verdict.reason)
"""


@pytest.fixture(autouse=True)
def _nondeterministic():
    torch.use_deterministic_algorithms(False)  # filling memory with NaN is not traceable


def available() -> list[str]:
    case = workload(SETTING)
    return [name for name, provider in PROVIDERS.items() if provider.missing(case) is None]


def test_all_that_run_here_compute_the_same():
    """Within rounding in fp32, prompts of mixed lengths included; so bounds and floors play no part."""
    case = workload(SETTING)
    exact = step("naive", in_float64(case), "step")()
    names = available()
    assert {"naive", "torch.compile", "torch.compile-scored", "plain"} <= set(names)
    for name in names:
        for made, right in zip(step(name, case, "step")(), exact, strict=True):
            assert float((made.double() - right).norm()) <= 3e-6 * float(right.norm()), name
    head = case.hidden.double(), case.weight.double()
    loss = reference.preference_loss(
        *head, case.batch, make_objective("dpo", beta=BETA), reference=case.reference.double()
    )
    assert float(exact[0]) == pytest.approx(float(loss), rel=1e-9), "and that is the library's own reference"


@pytest.mark.parametrize("mode", ["frozen", "forward"])
def test_modes_make_what_they_say(mode):
    names = [name for name in available() if not PROVIDERS[name].compiled]
    for name, verdict in judge(names, SETTING, mode).items():
        assert (verdict.state, len(verdict.error)) == ("timed", 1 + sum(MODES[mode])), name


@CPU_ONLY
def test_what_a_cpu_lacks_is_said():
    case = workload(SETTING)
    reasons = {name: provider.missing(case) for name, provider in PROVIDERS.items()}
    for name, said in {
        "triton": "the Triton backend wants a CUDA device", "cut-ce": "wants a CUDA device",
        "cut-ce-exact": "wants a CUDA device", "liger-linear-ce": "wants a CUDA device", "quack": "QuACK wants a CUDA",
    }.items():  # fmt: skip
        assert reasons[name] and said in reasons[name]


def test_a_soft_cap_leaves_out_who_has_none():
    case = workload(SETTING)._replace(softcap=30.0)
    for name in ("torch-linear-ce", "torch-linear-ce-chunked", "liger-preference", "liger-scaled-ce"):
        assert PROVIDERS[name].missing(case) is not None, name
    for name in ("naive", "torch.compile", "plain"):
        assert PROVIDERS[name].missing(case) is None


def test_a_soft_cap_is_computed():
    case = workload(SETTING)._replace(softcap=5.0)
    capless = float(step("naive", case._replace(softcap=None), "forward")()[0])
    losses = {
        name: float(step(name, case, "forward")()[0])
        for name in available()
        if PROVIDERS[name].missing(case) is None and not PROVIDERS[name].compiled
    }
    assert {"naive", "plain"} <= losses.keys() and abs(losses["naive"] - capless) > 1e-3
    assert all(loss == pytest.approx(losses["naive"], rel=1e-5) for loss in losses.values()), losses


def test_ligers_loss_is_ligers_own():
    """Without a reference it is what Liger's published class computes, values and gradients."""
    liger = pytest.importorskip("liger_kernel.chunked_loss")
    case = workload(SETTING)
    own = step("liger-preference", case._replace(reference=torch.zeros(6)), "step")()
    hidden, weight = (x.clone().requires_grad_() for x in (case.hidden, case.weight))
    theirs = liger.LigerFusedLinearDPOLoss(beta=BETA, use_ref_model=False, compiled=False)
    loss = theirs(weight, hidden, case.labels)[0]
    for mine, other in zip(own, (loss, *torch.autograd.grad(loss, [hidden, weight])), strict=True):
        assert float((mine - other.detach()).norm()) <= 1e-6 * float(other.detach().norm())


def test_without_the_peers_the_rest_goes_on():
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.strip() for line in lines[:2]] == ["naive timed", "plain timed"]
    assert len(lines) == 6 and all(" missing " in line and "cannot be imported" in line for line in lines[2:])


def test_who_fails_is_missing_and_who_is_off_is_wrong(monkeypatch):
    """Off by 2.5 times naive's error: within a peer's bound, beyond ours."""
    naive = PROVIDERS["naive"].loss

    def fails(case, workspace_bytes=None):
        raise RuntimeError("not\nhere")

    def off(case, workspace_bytes=None):
        exact = in_float64(case)
        return naive(exact) + 2.5 * (naive(case).double() - naive(exact))

    for name, loss in {"trl": fails, "torch-linear-ce": off, "plain": off}.items():
        monkeypatch.setitem(PROVIDERS, name, dataclasses.replace(PROVIDERS[name], loss=loss, missing=lambda case: None))
    bf16 = dataclasses.replace(SETTING, dtype="bf16")
    found = judge(["naive", "trl", "torch-linear-ce", "plain"], bf16, "forward")
    assert found["trl"] == ("missing", "RuntimeError: not here", None)
    assert found["torch-linear-ce"].state == "timed"
    assert found["torch-linear-ce"].error[0] == pytest.approx(2.5 * found["naive"].error[0], rel=1e-3)
    assert found["plain"].state == "wrong" and "want at most 1.25 x naive's" in found["plain"].reason


def test_ours_are_held_to_the_strict_rule():
    assert {name for name, provider in PROVIDERS.items() if provider.ours} == {
        "plain",
        "triton",
        "native",
        "native-bf16",
        "native-fp32",
    }
    for name, provider in PROVIDERS.items():
        if name == "triton":
            assert provider.bounds == STRICT._replace(dw=2.0)
        else:
            assert provider.bounds == (STRICT if provider.ours else LOOSE), name
