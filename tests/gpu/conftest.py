"""These tests want a card. Without one they are skipped, and only then."""

from __future__ import annotations

from pathlib import Path

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
