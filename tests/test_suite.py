"""The suite's own promise: a skip that nobody expects fails the run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("marker", "code"), [("", 1), ('@pytest.mark.may_skip("shown here")\n', 0)], ids=["stray", "may"]
)
def test_a_stray_skip_fails_the_run(tmp_path, marker, code):
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(f"import pytest\n\n{marker}def test_one():\n    pytest.skip('why not')\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = may_skip: expected\n")
    command = [sys.executable, "-m", "pytest", "-q", str(tmp_path), "-c", str(tmp_path / "pytest.ini")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stdout
    assert ("UNEXPECTED SKIP" in done.stdout) == bool(code)
