"""What is built and installed: wheels with the C++ kernels and without, and what the package then says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = "expo_kernels/kernels/native/_csrc.abi3.so"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: object, cwd: Path, **variables: str) -> str:
    env = {**os.environ, **variables}
    env.pop("PYTHONPATH", None)
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def sources(tmp_path_factory) -> Path:
    """The files of the repository, in a folder that a build may write to."""
    folder = tmp_path_factory.mktemp("sources")
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def wheel(sources: Path, out: Path, *options: str, **variables: str) -> tuple[Path, str]:
    said = run(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", *options, "-w", out, sources, cwd=out, **variables
    )
    (made,) = out.glob("*.whl")
    return made, said


def says(made: Path, folder: Path) -> str:
    """`python -m expo_kernels` of the installed wheel, beside this environment's torch."""
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, made, cwd=folder.parent)
    return run(sys.executable, "-m", "expo_kernels", cwd=folder)


def test_a_wheel_built_beside_torch_has_the_kernels(sources, tmp_path):
    made, _ = wheel(sources, tmp_path, "--no-build-isolation", EXPO_KERNELS_BUILD_CSRC="1")
    assert "-cp310-abi3-" in made.name, "one wheel serves every Python from 3.10 on"
    assert KERNELS in zipfile.ZipFile(made).namelist()
    assert "backend native, because the C++ kernels are built" in says(made, tmp_path / "there")


def test_an_isolated_build_sees_no_torch_and_says_so(sources, tmp_path):
    made, said = wheel(sources, tmp_path)
    assert "built without the C++ kernels, since torch cannot be imported" in said
    assert KERNELS not in zipfile.ZipFile(made).namelist() and made.name.endswith("-py3-none-any.whl")
    assert "backend plain" in (text := says(made, tmp_path / "there")) and "were not built" in text


def test_a_compiler_that_fails_is_said_and_may_be_forbidden(sources, tmp_path):
    made, said = wheel(sources, tmp_path, "--no-build-isolation", CXX="false", CC="false")
    assert "built without the C++ kernels, since that failed" in said
    assert KERNELS not in zipfile.ZipFile(made).namelist()
    with pytest.raises(AssertionError, match="Failed to build"):
        wheel(sources, tmp_path, "--no-build-isolation", CXX="false", CC="false", EXPO_KERNELS_BUILD_CSRC="1")


def test_they_can_be_left_out(sources, tmp_path):
    made, _ = wheel(sources, tmp_path, "--no-build-isolation", EXPO_KERNELS_BUILD_CSRC="0")
    assert KERNELS not in zipfile.ZipFile(made).namelist()


def test_the_source_distribution_builds_the_same(sources, tmp_path):
    run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=sources)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
        packed.extractall(tmp_path, filter="data")
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()} <= names
    (unpacked,) = (p for p in tmp_path.iterdir() if p.is_dir())
    out = tmp_path / "wheels"
    out.mkdir()
    made, _ = wheel(unpacked, out, "--no-build-isolation", EXPO_KERNELS_BUILD_CSRC="1")
    assert KERNELS in zipfile.ZipFile(made).namelist()
