"""What a process holds of memory, and what it can give back."""

from __future__ import annotations

import ctypes
import gc

import psutil
import torch
import torch.distributed as dist

from train.launch import rank, world


def give_back() -> None:
    """What was freed goes back to the system. Saves free blocks of many sizes, and glibc, which keeps them, would break
    its heap up a little more with each (docs/log.md)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


class _Malloc(ctypes.Structure):
    """glibc's mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def allocated() -> int | None:
    """Bytes that malloc has handed out and not got back, all its arenas and mappings together; None: it is not glibc's
    (2.33 or newer). Without what Python keeps for its own small objects."""
    account = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if account is None:
        return None
    account.restype = _Malloc
    now = account()
    return int(now.uordblks + now.hblkhd)


def held(device: torch.device) -> dict[str, list[float]]:
    """What each rank holds, in MiB, for all to know: of the host's memory (files that it maps left out), what malloc
    has handed out, touched or not (DeepSpeed's buckets are not, beyond their use), and the peak of its card's. Every
    rank calls it at the same time."""
    info = psutil.Process().memory_info()
    own = {"resident_mib": info.rss - getattr(info, "shared", 0)}
    if (bytes_out := allocated()) is not None:
        own["allocated_mib"] = bytes_out
    if device.type == "cuda":
        own["gpu_peak_mib"] = torch.cuda.max_memory_allocated(device)
    table = torch.zeros(len(own), world(), dtype=torch.float64)
    table[:, rank()] = torch.tensor([*own.values()], dtype=torch.float64) / 2**20
    if dist.is_initialized() and world() > 1:
        table = table.to(device)
        dist.all_reduce(table)
    return dict(zip(own, table.tolist(), strict=True))
