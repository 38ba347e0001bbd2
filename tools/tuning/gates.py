"""What candidates compile to, held against the gates of tools/machine_code: many at once, each in some other process.

What is compiled here is found in Triton's cache when the device asks for it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from expo_kernels.kernels.triton.tuning.types import Card
from tools.machine_code import launches
from tools.machine_code.compiling import compiling_for
from tools.machine_code.gates import _broken
from tools.machine_code.launches import Launch
from tools.machine_code.reading import read
from tools.tuning.subjects import PRODUCTS

WORKERS = 16


def broken(rows: Sequence[Card], kernel: str, *, every: bool) -> list[str]:
    """For each row what is wrong with its kernel's code, or nothing; every: in all variants, not only the timed."""
    count = min(len(rows), WORKERS, os.cpu_count() or 1)
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(first_broken, rows, repeat(kernel), repeat(every)))


def first_broken(row: Card, kernel: str, every: bool) -> str:
    """Compiles until something is wrong; -> what, or nothing."""
    with compiling_for(row.name) as found:
        for launch in launches.launches(row):
            if not _concerns(kernel, launch, every):
                continue
            before = len(found)
            try:
                launch.call()
            except Exception as error:  # a compiler's, of whatever kind: the candidate is out, and says why
                return (
                    f"{launch.variant}: does not compile: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
                )
            for compiled in found[before:]:
                if wrong := _broken(read(row.name, compiled), launch, row):
                    return f"{launch.variant}: {', '.join(wrong)}"
    return ""


def _concerns(kernel: str, launch: Launch, every: bool) -> bool:
    """Whether the launch runs that kernel's tiles; not every: only in the variants that are timed."""
    maker = getattr(launch.call, "func", None)
    llama, fp32 = launch.variant.startswith("llama"), launch.variant.startswith(("fp32", "odd"))
    if kernel == "walk":
        return maker is launches.rows.score_logits and (every or llama)
    if kernel == "persistent":
        return maker is launches._persistent and (every or llama)
    if kernel in PRODUCTS:
        own = launches.product.tiled_product if kernel == "product" else launches.product.product_persistent
        return maker is own and not fp32 and (every or launch.variant.startswith("bf16"))
    if kernel == "small":
        return maker in (launches._head, launches.product.tiled_product) and fp32
    capped = launch.variant.startswith("gemma")
    if maker is not launches._head or fp32 or capped != (kernel == "capped"):
        return False
    return every or (launch.variant.startswith(("llama", "gemma")) and "statistics" not in launch.variant)
