"""Everything but the C++ kernels is in pyproject.toml; they are built where a compiler and torch's headers are.

EXPO_KERNELS_BUILD_CSRC=1 makes a failed build an error, 0 leaves the kernels out. By default they are left out, and
that is said, where torch cannot be imported (an isolated build sees none) or the compiler fails: then the backend
`plain` serves. EXPO_KERNELS_CFLAGS are further flags of compiler and linker, such as -fsanitize=address.
"""

import os
import sys
from pathlib import Path

from setuptools import setup

VARIABLE = "EXPO_KERNELS_BUILD_CSRC"
SOURCES = [str(path) for path in sorted(Path("csrc").rglob("*.cpp"))]
OLDEST = "0x020b000000000000"  # torch 2.11: the stable ABI that the kernels ask for, and every newer torch has
COMPILE = ["-O3", "-std=c++20", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi"]


def extension(wanted: str) -> dict:
    """-> setup's arguments for the kernels, empty where they are left out."""
    if wanted not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE}: want 0, 1 or nothing, got {wanted!r}")
    if wanted == "0":
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if wanted == "1":
            raise
        print(f"expo_kernels: built without the C++ kernels, since torch cannot be imported ({error})", file=sys.stderr)
        return {}

    class Build(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if wanted == "1":
                    raise
                print(f"expo_kernels: built without the C++ kernels, since that failed: {error}", file=sys.stderr)
                self.extensions = []

    more = os.environ.get("EXPO_KERNELS_CFLAGS", "").split()
    kernels = CppExtension(
        "expo_kernels.kernels.native._csrc", SOURCES, include_dirs=[str(Path("csrc").resolve())], py_limited_api=True,
        extra_compile_args=[*COMPILE, *more], extra_link_args=more,
        define_macros=[("TORCH_TARGET_VERSION", OLDEST)],
    )  # fmt: skip
    return {
        "ext_modules": [kernels],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension(os.environ.get(VARIABLE, "")))
