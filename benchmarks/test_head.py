"""The loss head by pytest-benchmark, each provider beside naive PyTorch: pytest benchmarks

Parity is checked before anything is timed. Rounds do not take turns here: for figures to quote use bench_head.
"""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks.cases import Setting
from benchmarks.measured import judge
from benchmarks.providers import MODES, PROVIDERS, Workload, step, workload

pytest.importorskip("pytest_benchmark")

SETTING = Setting(model="256x8192", tokens=512, pairs=4, masked=0.25, dtype="fp32")


@functools.cache
def case() -> Workload:
    return workload(SETTING)


@pytest.fixture(scope="module", autouse=True)
def _fresh():
    """What is compiled here is compiled for the shapes here."""
    torch.compiler.reset()
    yield
    case.cache_clear()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("mode", MODES)
def test_head(benchmark, provider: str, mode: str) -> None:
    verdict = judge([provider], SETTING, mode)[provider]
    if verdict.state == "missing" or (verdict.state == "wrong" and not PROVIDERS[provider].ours):
        pytest.skip(f"{verdict.state}: {verdict.reason}")
    assert verdict.state == "timed", verdict.reason
    made = step(provider, case(), mode)

    def run() -> None:
        made()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    benchmark.group = f"{mode}, {SETTING.model}, {SETTING.tokens} tokens, {SETTING.dtype}"
    benchmark.extra_info.update(provider=provider, mode=mode, error=list(verdict.error or ()))
    benchmark.pedantic(run, rounds=5, iterations=1, warmup_rounds=1)
