"""Every test: one seed, uninitialised memory filled with NaN, nondeterministic operations refused, no stray skips.

Without a GPU the Triton kernels run in Triton's interpreter, which must be asked for before Triton is imported.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    # threads of several workers on the same cores only wait for each other; test_bits.py asks for two
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # for what a test starts


@pytest.fixture
def backend(request, monkeypatch):
    """One of tests/backends.py, made what "auto" means for this test; -> the name for Execution(backend=)."""
    import backends

    name = backends.use(request.param, monkeypatch)
    monkeypatch.setenv("EXPO_KERNELS_BACKEND", name)
    return name


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter():
    """Triton's interpreter patches its language anew at every call of a device function; once a launch is enough."""
    if not os.environ.get("TRITON_INTERPRET"):
        yield
        return
    from triton.runtime import interpreter

    patch, launch, done = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def patch_once(function):
        if id(function.__globals__) in done:
            return interpreter._LangPatchScope()
        done.add(id(function.__globals__))
        return patch(function)

    def launch_afresh(self, *args, **kwargs):
        done.clear()
        return launch(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_afresh
    yield
    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch, launch


@pytest.fixture(autouse=True)
def _strict_torch():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # this also fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


_unexpected: list[str] = []


def pytest_runtest_logreport(report):
    """Heard in every worker and, of all of them, in the process that started them."""
    if report.skipped and not hasattr(report, "wasxfail") and "may_skip" not in report.keywords:
        _unexpected.append(report.nodeid)


def pytest_sessionfinish(session, exitstatus):
    if _unexpected and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    for nodeid in _unexpected:
        terminalreporter.write_line(f"UNEXPECTED SKIP (mark it may_skip if it is right): {nodeid}", red=True)
