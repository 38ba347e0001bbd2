"""From a setting to records: parity first, then the clock, then memory. The benches of the head share it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.cases import Setting
from benchmarks.providers import MODES, PROVIDERS, Bounds, Workload, step, workload
from benchmarks.providers.contract import in_words
from benchmarks.records import Record

FLOOR = 2e-5  # relative; fp32 sums of log-probs of a few hundred nats
PARITY_TOKENS = 256


class Verdict(NamedTuple):
    """Whether a provider may be timed."""

    state: str  # "timed" where it may
    reason: str = ""
    error: tuple[float, ...] | None = None  # of loss, dh, dw, as far as the mode makes them


class Plan(NamedTuple):
    """What is measured of a setting."""

    bench: str
    mode: str
    workspace: int | None = None
    rounds: int | None = 5  # None: nothing is timed
    warmup: float = 1.0
    memory: bool = True
    command: str = ""
    axis: str | None = None


class Row(NamedTuple):
    record: Record
    seconds: tuple[float, ...] = ()  # of every round


# parity


def judge(names: Sequence[str], setting: Setting, mode: str, workspace: int | None = None) -> dict[str, Verdict]:
    """Errors against float64, in norm, on a workload like the setting's of 256 tokens. A provider may be timed where
    none exceeds its bound times naive's, plus the floor."""
    per_sequence = max(min(setting.tokens, PARITY_TOKENS) // (2 * setting.pairs), 1)
    case = workload(dataclasses.replace(setting, tokens=per_sequence * 2 * setting.pairs))
    exact = step("naive", in_float64(case), mode)()
    plain = _errors(step("naive", case, mode)(), exact)
    return {name: _verdict(name, case, mode, workspace, exact, plain) for name in names}


def in_float64(case: Workload) -> Workload:
    return case._replace(hidden=case.hidden.double(), weight=case.weight.double(), reference=case.reference.double())


def _verdict(
    name: str, case: Workload, mode: str, workspace: int | None, exact: tuple[Tensor, ...], plain: tuple[float, ...]
) -> Verdict:
    provider = PROVIDERS[name]
    if reason := provider.missing(case):
        return Verdict("missing", reason)
    try:
        error = _errors(step(name, case, mode, workspace)(), exact)
    except Exception as failure:
        return Verdict("missing", in_words(failure))
    for what, own, naive, bound in zip(Bounds._fields, error, plain, provider.bounds, strict=False):
        if not own <= bound * naive + FLOOR:
            return Verdict("wrong", f"error of {what} {own:.2e}, want at most {bound:g} x naive's {naive:.2e}", error)
    return Verdict("timed", "", error)


def _errors(made: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> tuple[float, ...]:
    return tuple(float((a.double() - b).norm() / b.norm()) for a, b in zip(made, exact, strict=True))


# time and memory


def measured(setting: Setting, plan: Plan, verdicts: Mapping[str, Verdict]) -> list[Row]:
    """A row for each of the verdicts, in their order: who may not be timed is not called. Providers take turns."""
    case = workload(setting)
    known = describe(case, setting, plan)
    steps = {name: step(name, case, plan.mode, plan.workspace) for name, v in verdicts.items() if v.state == "timed"}
    verdicts = {**verdicts, **_warm(steps, plan.warmup)}
    steps = {name: made for name, made in steps.items() if verdicts[name].state == "timed"}
    seconds = _timed(case, steps, plan) if steps else {}
    held: dict[str, int | str] = {}
    if plan.memory and torch.cuda.is_available():
        held = {name: measure.device_peak(made) for name, made in steps.items()}
    names = list(steps)
    if plan.memory and not torch.cuda.is_available():
        with tempfile.TemporaryDirectory() as folder:
            saved = {setting: save(case, Path(folder))}
            del case, steps  # the processes of the peaks want the memory
            held = {name: found[0] for name, found in process_peaks(names, saved, plan).items()}
    return [row_of(name, verdict, known, seconds, held.get(name)) for name, verdict in verdicts.items()]


def save(case: Workload, folder: Path) -> Path:
    """For the processes of process_peaks: making a workload takes longer than most of what they do with it."""
    path = folder / f"{len(list(folder.iterdir()))}.pt"
    torch.save(case, path)
    return path


def process_peaks(names: Sequence[str], saved: Mapping[Setting, Path], plan: Plan) -> dict[str, list[int | str]]:
    """saved: a workload of each setting -> bytes above inputs and gradients in each of them, or why there is no figure;
    each provider in a process of its own."""
    found = {}
    for name in names:
        same = {
            "provider": name, "mode": plan.mode, "workspace_bytes": plan.workspace, "threads": torch.get_num_threads()
        }  # fmt: skip
        many = [{**same, "saved": str(path), "setting": dataclasses.asdict(setting)} for setting, path in saved.items()]
        found[name] = measure.peaks("benchmarks.providers:peak_step", many)
    return found


def _warm(steps: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Verdict]:
    """-> who cannot make the whole step, for want of memory for instance, and why."""
    failed = {}
    for name, made in steps.items():
        try:
            measure.warm(made, seconds)
        except Exception as failure:
            failed[name] = Verdict("missing", in_words(failure))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return failed


def _timed(case: Workload, steps: Mapping[str, Callable[[], object]], plan: Plan) -> dict[str, list[float]]:
    """Of the products and of the steps, which are warm."""
    assert plan.rounds is not None, "measured is for who wants times"
    base = products(case, plan.mode)
    measure.warm(base, plan.warmup)
    return measure.taken_turns({"products": base, **steps}, plan.rounds)


def products(case: Workload, mode: str) -> Callable[[], None]:
    """The library's products that the mode cannot do without, on the scored tokens, in the input's dtype."""
    h = case.hidden.reshape(-1, case.hidden.shape[-1])[case.batch.rows]
    w, count = case.weight, 1 + sum(MODES[mode])

    def run() -> None:
        z = h @ w.T
        if count > 1:
            z @ w
        if count > 2:
            z.T @ h

    return run


# records


def describe(case: Workload, setting: Setting, plan: Plan) -> Record:
    """What all records of the setting have in common."""
    V, D = case.weight.shape
    return Record(
        **measure.environment(), command=plan.command, bench=plan.bench, provider="", state="timed",
        model=setting.model, D=D, V=V, softcap=case.softcap, tokens=setting.tokens, scored=case.batch.rows.numel(),
        pairs=setting.pairs, masked=setting.masked, dtype=setting.dtype, kind=setting.kind,
        entropy=round(case.entropy, 4), nll=round(case.nll, 4), mode=plan.mode, workspace=plan.workspace,
        rounds=plan.rounds, axis=plan.axis,
    )  # fmt: skip


def row_of(
    name: str, verdict: Verdict, known: Record, seconds: Mapping[str, Sequence[float]], held: int | str | None
) -> Row:
    if isinstance(held, str):  # the process of its peak failed, though the step was made here
        verdict = Verdict("missing", f"no peak: {held}", verdict.error)
    record = dataclasses.replace(
        known, provider=name, state=verdict.state, reason=verdict.reason, error=verdict.error,
        peak_mib=held / 2**20 if isinstance(held, int) else None,
    )  # fmt: skip
    own = seconds.get(name)
    if not own or verdict.state != "timed":
        return Row(record)
    return Row(with_time(record, own, seconds["products"]), tuple(own))


def with_time(record: Record, own: Sequence[float], base: Sequence[float]) -> Record:
    """The record of a mode and shape, with its seconds and those of the products in the same rounds."""
    assert record.mode and record.scored and record.D and record.V
    time, products_time = measure.summary(own), measure.summary(base).median
    operations = 2.0 * (1 + sum(MODES[record.mode])) * record.scored * record.D * record.V
    return dataclasses.replace(
        record, ms=1e3 * time.median, low_ms=1e3 * time.low, high_ms=1e3 * time.high, products_ms=1e3 * products_time,
        ratio=time.median / products_time, tflops=operations / time.median / 1e12,
    )  # fmt: skip


# what is shown and saved


def show(rows: Sequence[Row]) -> None:
    """A table; below it why the others are not in it, and what to know of those that are."""
    first = rows[0].record
    print(
        f"{first.model}: D {first.D}, V {first.V}, {first.scored} scored of {first.tokens} tokens in {first.pairs} "
        f"pairs, {first.dtype}, {first.kind} (entropy {first.entropy}, nll {first.nll}), mode {first.mode}\n"
        f"{first.device}, {first.threads} threads, torch {first.torch}, {first.date}, {first.commit}"
    )
    print(
        f"{'provider':<23} {'ms':>9} {'quartiles':>18} {'x prod.':>8} {'% prod.':>8} {'TFLOP/s':>8} {'peak MiB':>9}  "
        "error of loss, dh, dw"
    )
    for record in (row.record for row in rows):
        if record.state == "timed":
            print(_line(record))
        else:
            print(f"{record.provider:<23} {record.state}: {record.reason}")
    for name in (row.record.provider for row in rows if row.record.state == "timed"):
        if PROVIDERS[name].note:
            print(f"  {name}: {PROVIDERS[name].note}")
    print(flush=True)


def _line(r: Record) -> str:
    def shown(value: float | None, width: int, digits: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"

    share = None if r.ratio is None else 100 / r.ratio
    numbers = (
        shown(r.ms, 9, 1), shown(r.low_ms, 8, 1), shown(r.high_ms, 9, 1), shown(r.ratio, 8, 2), shown(share, 8, 0),
        shown(r.tflops, 8, 3), shown(r.peak_mib, 9, 1),
    )  # fmt: skip
    return " ".join([f"{r.provider:<23}", *numbers, "", *(f"{e:.1e}" for e in r.error or ())])


def refused(rows: Sequence[Row]) -> str | None:
    """In words, who of ours was wrong: a benchmark that finds one fails."""
    wrong = [
        f"{r.provider}: {r.reason}; not timed"
        for r in (row.record for row in rows)
        if r.state == "wrong" and PROVIDERS[r.provider].ours
    ]
    return "; ".join(wrong) or None
