"""These tests want a card. Without one they are skipped, and only then."""

from __future__ import annotations

import os
from pathlib import Path

# the library's products refuse deterministic mode without it; read when the first of them is made
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.may_skip("no GPU here"))
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))


@pytest.fixture
def card():
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _no_memory_left_over():
    yield
    torch.cuda.empty_cache()
