"""The library imports and works without Triton and without a compiler, and says which backend it chose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expo_kernels.__main__ import describe
from expo_kernels.kernels import native, plain
from expo_kernels.kernels.native import csrc
from expo_kernels.kernels.resolve import resolve

ROOT = Path(__file__).parent.parent
WITHOUT = """
import sys
for name in ("triton", "transformers", "deepspeed", "numpy"):
    sys.modules[name] = None
import torch
from expo_kernels.fused_expo_loss import expo_loss
hidden, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
expo_loss(hidden, weight, torch.ones(2, 3, dtype=torch.long), variant="comp", lam=0.1).loss.backward()
assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()
print("works")
"""


def python(*arguments: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_triton_and_without_a_compiler():
    """No compiler: an empty PATH, so that nothing can be built behind one's back."""
    assert python("-c", WITHOUT, PATH="", CC="/nonexistent", CXX="/nonexistent").strip() == "works"


def test_the_program_says_which_backend_and_why():
    text = python("-m", "expo_kernels")
    assert (text.strip(), True) == describe()
    assert "cpu" in text and f"backend {'plain' if csrc.problem() else 'native'}, because" in text
    assert torch.__version__ in text


def test_the_program_says_why_there_is_no_backend():
    env = {**os.environ, "EXPO_KERNELS_BACKEND": "triton", "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-m", "expo_kernels"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "no backend, because backend 'triton'" in done.stdout and not done.stderr


def test_resolution(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.delenv("EXPO_KERNELS_BACKEND", raising=False)
    assert resolve("auto", device).backend is (plain if csrc.problem() else native).BACKEND
    assert resolve("plain", device).backend is plain.BACKEND and resolve("plain", device).reason == "asked for by name"
    monkeypatch.setenv("EXPO_KERNELS_BACKEND", "plain")
    assert resolve("auto", device).reason == "EXPO_KERNELS_BACKEND is set"
    monkeypatch.setenv("EXPO_KERNELS_BACKEND", "triton")
    assert resolve("plain", device).backend is plain.BACKEND, "a name in the call outranks the environment"
    assert resolve("auto", device).backend.name == "triton"
    with pytest.raises(NotImplementedError, match=r"native.*serve the CPU"):
        resolve("native", torch.device("cuda"))
    monkeypatch.delenv("EXPO_KERNELS_BACKEND")
    monkeypatch.setattr(csrc, "problem", lambda: "not built")
    assert resolve("auto", device).backend is plain.BACKEND and "native: not built" in resolve("auto", device).reason
    with pytest.raises(NotImplementedError, match=r"backend 'native' on cpu .*: not built"):
        resolve("native", device)
    with pytest.raises(NotImplementedError, match=r"triton.*serve cuda devices"):
        resolve("triton", torch.device("mps"))


def test_triton_on_a_cpu_wants_its_interpreter():
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    code = "import torch; from expo_kernels.kernels.resolve import resolve; resolve('triton', torch.device('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "set TRITON_INTERPRET=1 before Python starts" in done.stderr
