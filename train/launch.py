"""The processes: what `deepspeed`, torchrun or python started, made into ranks that can talk, and ended cleanly."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist


def start(*, deepspeed: bool, use_cpu: bool, timeout: int) -> None:
    """Before transformers' arguments are made: they look at the process group."""
    if deepspeed and "RANK" not in os.environ:  # else DeepSpeed looks for MPI
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    if use_cpu or not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        backend = "gloo"
    else:
        torch.cuda.set_device(local_rank())
        backend = "nccl"
    warnings.filterwarnings("ignore", message=r".torch\.distributed\.", category=FutureWarning)  # one for every step
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # peft's
    _quiet()
    if deepspeed:
        _start_deepspeed(backend, timeout)
    elif world() > 1 and not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))


def _quiet() -> None:
    """Bars of loading and writing files; what takes long has a bar of ours."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def _start_deepspeed(backend: str, timeout: int) -> None:
    import deepspeed

    # an operation for ranks on one CPU machine, compiled at start with ninja; gloo does without
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, timeout=timedelta(seconds=timeout), verbose=False)


def device(use_cpu: bool) -> torch.device:
    return torch.device("cpu" if use_cpu or not torch.cuda.is_available() else f"cuda:{local_rank()}")


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


_turns = itertools.count()


@contextmanager
def main_first() -> Iterator[None]:
    """The first rank of each machine goes first; the others find what it has written. They wait as long as it takes: a
    collective would end the run after ddp_timeout."""
    turn = f"main_first/{next(_turns)}/{rank() - local_rank()}"
    store = dist.distributed_c10d._get_default_store() if world() > 1 else None
    if store is not None and local_rank() != 0:
        store.wait([turn], timedelta(days=7))
    try:
        yield
    finally:
        if store is not None and local_rank() == 0:
            store.set(turn, "done")


def say(*lines: str) -> None:
    """On the first rank."""
    if rank() == 0:
        print(*lines, sep="\n", flush=True)


def finish(code: int) -> None:
    """Ends this process at once: a rank that runs its destructors sometimes aborts after its work is done."""
    if wandb := sys.modules.get("wandb"):
        wandb.finish(exit_code=code)  # what it would do at an ordinary end
    if code == 0 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
