"""Every test: one seed, uninitialised memory filled with NaN, nondeterministic operations refused, no stray skips."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _strict_torch():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # this also fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


_unexpected: list[str] = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("may_skip") is None:
        _unexpected.append(item.nodeid)


def pytest_sessionfinish(session, exitstatus):
    if _unexpected and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    for nodeid in _unexpected:
        terminalreporter.write_line(f"UNEXPECTED SKIP (mark it may_skip if it is right): {nodeid}", red=True)
