"""csrc/ under AddressSanitizer and UndefinedBehaviorSanitizer: python -m tools.sanitize (make sanitize)

Builds the kernels with both, in a folder of its own, and runs the tests of the native backend on them, with the
sanitizer's library before all others. The first finding ends the run. Arguments go to pytest, in place of these tests.

ThreadSanitizer cannot judge them: torch's threads meet in libgomp, which is not built with it, so it knows nothing of
the barriers between them and calls every result read after one a race.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g"
TESTS = tuple(f"tests/test_{name}.py" for name in ("native", "native_products", "parity", "not_finite", "bits"))
CHOSEN = ("-k", "native or test_bits", "-m", "not slow")


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        kernels = build(Path(name))
        environment = {
            **os.environ, "EXPO_KERNELS_CSRC": str(kernels), "EXPO_KERNELS_BACKEND": "native",
            "LD_PRELOAD": " ".join(_library(which) for which in ("libasan.so", "libubsan.so")),
            # Python leaves to the system what lives to the end; an allocation that fails is the caller's to report
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }  # fmt: skip
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--capture=sys", *(arguments or [*TESTS, *CHOSEN])]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode


def build(folder: Path) -> Path:
    """-> the library."""
    environment = {**os.environ, "EXPO_KERNELS_BUILD_CSRC": "1", "EXPO_KERNELS_CFLAGS": FLAGS}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(done.stdout)
    (found,) = folder.rglob("_csrc*.so")
    return found


def _library(name: str) -> str:
    """The compiler's own copy."""
    compiler = os.environ.get("CXX", "g++")
    return subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
