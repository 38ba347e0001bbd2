"""A provider of bench_step in a process of its own, which makes steps when it is told to and says how they went."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback

from benchmarks import measure
from benchmarks.steps.case import Case
from benchmarks.steps.providers import Provider
from train.batches import MicroBatch

PATIENCE = 1800.0  # seconds for one answer
PRELOADED = ["benchmarks.steps.providers", "trl.trainer.dpo_trainer"]  # imported once where processes may be forked
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
USUAL = ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 64 << 20))


class Seen(NamedTuple):
    """A batch."""

    digest: str  # of tokens, of what is padding, and of what is scored
    tokens: int  # without padding
    positions: int  # with it
    scored: int


class Order(NamedTuple):
    steps: int
    memory: bool  # look at memory, not at the clock


class Turn(NamedTuple):
    """How the steps of an Order went."""

    seconds: float
    standing: int | None  # bytes before them: the model, the optimizer's state; on a CPU the libraries too
    peak: int | None  # bytes
    first: tuple[tuple[float, float], ...]  # loss and gradient norm of the run's first steps
    batches: tuple[Seen, ...]  # of the run, from its beginning; perhaps some more than were used


class Failed(NamedTuple):
    reason: str


class Turns(TrainerCallback):
    """Holds a Trainer's loop before a step until the parent says how many to make."""

    def __init__(self, pipe: Connection, checked: int) -> None:
        """checked: the run's first steps, whose losses are reported one by one."""
        self.pipe, self.checked, self.left = pipe, checked, 0
        self.first: list[tuple[float, float]] = []
        self.batches: list[Seen] = []
        self.standing: int | None = None
        self.began = time.perf_counter()

    def watch(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def collate_and_note(examples: Any) -> Any:
            batch = collate(examples)
            self.batches.append(seen(batch))
            return batch

        return collate_and_note

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.left:
            self._report_and_wait()
        self.left -= 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step <= self.checked:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs and len(self.first) < self.checked:
            self.first.append((logs["loss"], float(logs["grad_norm"])))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._report_and_wait()

    def _report_and_wait(self) -> None:
        measure._synchronize()
        seconds = time.perf_counter() - self.began
        peak = None if self.standing is None else _peak()
        self.pipe.send(Turn(seconds, self.standing, peak, tuple(self.first), tuple(self.batches)))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # it is another's turn
        order: Order = self.pipe.recv()
        self.left, self.standing = order.steps, _stand(order.memory)
        self.began = time.perf_counter()


def _stand(watched: bool) -> int | None:
    """-> the bytes that stand, from which on the peak counts; None where nobody looks."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() if watched else None
    libc = ctypes.CDLL(None)
    # under a watch what is freed goes back at once, or a peak would hide in it; else as glibc itself ends up with
    for option, value in ((M_MMAP_THRESHOLD, 1 << 20), (M_TRIM_THRESHOLD, 0)) if watched else USUAL:
        libc.mallopt(option, value)
    if not watched:
        return None
    libc.malloc_trim(0)
    measure._reset_peak()
    return measure._status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else measure._status("VmHWM")


def seen(batch: Any) -> Seen:
    """A MicroBatch, or what TRL's collator makes."""
    scored: Tensor
    if isinstance(batch, MicroBatch):
        ids, mask = batch.inputs.input_ids, batch.inputs.attention_mask
        assert mask is not None, "padded batches are compared"
        scored = torch.zeros_like(ids).flatten().index_fill(0, batch.batch.rows + 1, 1).view_as(ids)
    else:
        ids, mask, scored = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    digest = hashlib.sha256(torch.stack([ids, mask, scored]).numpy().tobytes()).hexdigest()
    return Seen(digest, int(mask.sum()), ids.numel(), int(scored.sum()))


class Worker:
    """The parent's end."""

    def __init__(self, provider: Provider, case: Case, folder: Path, output: Path, checked: int) -> None:
        context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, provider, case, folder, output, checked))
        self.process.start()
        theirs.close()

    def answer(self) -> Turn | Failed:
        """The first one comes when all is loaded, before any step."""
        if not self.pipe.poll(PATIENCE):
            return Failed(f"no answer in {PATIENCE:.0f} s")
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            return Failed(f"the process ended with code {self.process.exitcode}")

    def turn(self, steps: int, *, memory: bool = False) -> Turn | Failed:
        self.pipe.send(Order(steps, memory))
        return self.answer()

    def stop(self) -> None:
        """It ends by itself, unless it is in the middle of something."""
        self.pipe.close()
        self.process.join(10.0)
        self.process.terminate()
        self.process.join()


def _work(pipe: Connection, provider: Provider, case: Case, folder: Path, output: Path, checked: int) -> None:
    output.mkdir()
    with (output / "printed").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        trainer = provider(case, folder, output)
        turns = Turns(pipe, checked)
        trainer.data_collator = turns.watch(trainer.data_collator)
        trainer.add_callback(turns)
        trainer.train()
    except EOFError:  # the parent has heard enough
        pass
    except BaseException as error:
        traceback.print_exc()
        pipe.send(Failed(" ".join(f"{type(error).__name__}: {error}".split())))
