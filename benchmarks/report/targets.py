"""What was promised of speed, memory and error, held against a device's records: met or not, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from benchmarks.records import MODES, Record
from benchmarks.report.numbers import NOTHING, figure, times
from benchmarks.report.results import Results
from benchmarks.report.shape import (
    AXIS,
    COMPILED,
    LIGER,
    NAIVE,
    TRL,
    Case,
    Sweep,
    cases,
    is_ours,
    largest,
    sweeps,
    the,
    timed,
)
from benchmarks.report.tables import title
from tools.marked import table

ROUNDED, PRECISE = 1.08, 1.30  # of three products: bf16 logits; fp32 logits, with errors several times smaller
SEVERAL = 0.5  # of naive's error, from which on it counts as several times smaller
SHARE = 0.90  # of the library's products, on a GPU
PEERS = ((TRL, 1.25), (LIGER, 1.30))  # their time, by ours
MASKED_PEERS = 2.5  # the same with half the tokens masked
SLOPE, FLAT = 1.10, 1.10  # linear: at most this power; flat: largest by smallest
LOGITS = 0.01  # of the fp32 logits, forward only
TRAINER = 2.0  # TRL's tokens a second
WORKSPACE = 1 << 30  # bytes, where a record names none: the library's default


class Target(NamedTuple):
    what: str
    wanted: str
    measured: str
    met: bool | None  # None: nothing was measured that could tell
    gap: str = ""


def section(results: Results) -> list[str]:
    rows = [
        (target.what, target.wanted, target.measured, _verdict(target))
        for target in [*targets(results), *whole_steps(results)]
    ]
    return [table(("target", "wanted", "measured", "met"), rows), "", *slow_library(results)]


def _verdict(target: Target) -> str:
    if target.met is None:
        return "not measured"
    return "yes" if target.met else f"**no**: {target.gap}"


def targets(results: Results) -> Iterator[Target]:
    head = cases(results.of("head"))
    if results.environment["simd"] is None:
        yield from _gpu_products(head)
    else:
        yield from _cpu_products(head)
    yield from _compiled(head)
    yield from _peers(head)
    yield from _bounded(results)
    yield from _grows(results)
    yield _precise(results.of("head"))


def best(own: Sequence[Record], mode: str) -> Record | None:
    """The fastest of ours."""
    mine = [record for record in timed(own, mode=mode) if is_ours(record.provider) and record.ms is not None]
    return min(mine, key=lambda record: record.ms or 0.0, default=None)


def _at_most(what: str, limit: float, value: float | None, more: str = "") -> Target:
    if value is None:
        return Target(what, f"at most {times(limit)}", NOTHING, None)
    return Target(
        what, f"at most {times(limit)}", times(value) + more, value <= limit, f"{times(value / limit)} x that"
    )


def _at_least(what: str, limit: float, value: float | None, more: str = "") -> Target:
    if value is None:
        return Target(what, f"at least {times(limit)}", NOTHING, None)
    return Target(
        what, f"at least {times(limit)}", times(value) + more, value >= limit, f"{times(value / limit)} x that"
    )


# time


def _cpu_products(head: dict[Case, list[Record]]) -> Iterator[Target]:
    case = largest(head, "bf16")
    own = [] if case is None else head[case]
    ours, naive = best(own, "step"), the(own, NAIVE, "step")
    where = "bf16 step by the library's three products" + (f" ({title(case)})" if case is not None else "")
    share = None if ours is None or naive is None else max(_beside(ours, naive))
    if ours is None or share is None:
        yield _at_most(where, ROUNDED, None)
    else:
        limit = PRECISE if share <= SEVERAL else ROUNDED
        yield _at_most(where, limit, ours.ratio, f" ({ours.provider}, errors at most {times(share)} x naive's)")


def _gpu_products(head: dict[Case, list[Record]]) -> Iterator[Target]:
    for case, own in head.items():
        if case.masked or case.dtype != "bf16":
            continue
        for mode in MODES:
            if (ours := best(own, mode)) is not None and ours.ratio is not None:
                yield _at_least(f"{mode}: share of the library's products ({title(case)})", SHARE, 1 / ours.ratio)


def _beside(ours: Record, naive: Record) -> list[float]:
    return [a / b for a, b in zip(ours.error or (), naive.error or (), strict=True)]


def _compiled(head: dict[Case, list[Record]]) -> Iterator[Target]:
    """Never slower than compiled naive code, in any mode."""
    for dtype in ("bf16", "fp32"):
        case = largest(head, dtype)
        own = [] if case is None else head[case]
        shares = []
        for mode in MODES:
            ours, rival = best(own, mode), the(own, COMPILED, mode)
            if ours is not None and rival is not None and ours.ms and rival.ms:
                shares.append((ours.ms / rival.ms, mode))
        told = ", ".join(f"{mode} {times(share)}" for share, mode in shares)
        yield _at_most(
            f"{dtype}: time by that of compiled naive code, in the worst mode", 1.0,
            max(shares)[0] if shares else None, f" ({told})",
        )  # fmt: skip


def _peers(head: dict[Case, list[Record]]) -> Iterator[Target]:
    """A peer's time by ours."""
    for case, own in head.items():
        ours = best(own, "step")
        for peer, limit in PEERS:
            theirs = the(own, peer, "step")
            if ours is None or theirs is None or not ours.ms or not theirs.ms:
                continue
            wanted = MASKED_PEERS if case.masked and case.masked >= 0.5 else limit
            yield _at_least(f"{peer}'s time by ours, step ({title(case)})", wanted, theirs.ms / ours.ms)


def slow_library(results: Results) -> list[str]:
    """What to know where the library's own bf16 products are slower than its fp32 ones."""
    speed: dict[str, float] = {}
    for dtype in ("bf16", "fp32"):
        own = [row.tflops for row in results.ceilings if row.dtype == dtype and row.tflops]
        if own:
            speed[dtype] = len(own) / sum(1 / one for one in own)  # of all three, one after the other
    if len(speed) < 2 or speed["bf16"] >= speed["fp32"]:
        return []
    return [
        f"On this device the library's bf16 products reach {times(speed['bf16'] / speed['fp32'])} of the speed of its "
        "fp32 products, so a multiple of them, and of naive code made of them, says little about bf16 here; the fp32 "
        "rows do.", "",
    ]  # fmt: skip


# memory


def _bounded(results: Results) -> Iterator[Target]:
    """Above inputs and gradients: the workspace and one fp32 dw."""
    mine = [r for r in [*results.of("memory"), *results.of("head")] if is_ours(r.provider) and r.peak_mib is not None]
    for mode in ("step", "frozen"):
        over = [(r.peak_mib or 0.0, allowed) for r in mine if r.mode == mode for allowed in [_allowed(r)]]
        worst = max(over, key=lambda pair: pair[0] / pair[1], default=None)
        what = f"{mode}: peak by workspace{' and one fp32 dw' if mode == 'step' else ''}, the largest"
        more = "" if worst is None else f" ({figure(worst[0])} of {figure(worst[1])} MiB)"
        yield _at_most(what, 1.0, None if worst is None else worst[0] / worst[1], more)
    forward = max((r for r in mine if r.mode == "forward"), key=lambda r: r.scored or 0, default=None)
    share = (
        None if forward is None else (forward.peak_mib or 0.0) * 2**20 / (4 * (forward.scored or 0) * (forward.V or 0))
    )
    more = "" if forward is None else f" ({figure(forward.peak_mib)} MiB, N {forward.scored:,})"
    yield _at_most("forward only: peak by the fp32 logits, most tokens", LOGITS, share, more)


def _allowed(record: Record) -> float:
    """MiB."""
    assert record.D is not None and record.V is not None, "a head has a shape"
    dw = 4 * record.D * record.V if record.mode == "step" else 0
    return ((WORKSPACE if record.workspace is None else record.workspace) + dw) / 2**20


def _grows(results: Results) -> Iterator[Target]:
    found = sweeps([*results.of("scaling"), *results.of("memory")])
    for axis in ("tokens", "vocabulary"):
        slopes = [s for sweep in _of(found, "scaling", axis) if (s := _slope(sweep)) is not None]
        yield _at_most(f"time grows as {AXIS[axis]} does: slope", SLOPE, max(slopes, default=None))
    flat = [s for sweep in _of(found, "memory", "length") if (s := _spread(sweep)) is not None]
    yield _at_most("memory is flat in T: largest by smallest peak", FLAT, max(flat, default=None))


def _of(found: Sequence[Sweep], bench: str, axis: str) -> Iterator[Sweep]:
    return (sweep for sweep in found if (sweep.bench, sweep.axis) == (bench, axis))


def _ours(sweep: Sweep, of: Callable[[list[Record]], float | None]) -> float | None:
    """The largest among ours."""
    found = [of(sweep.of(name)) for name in sweep.providers if is_ours(name) and sweep.of(name)]
    return max((one for one in found if one is not None), default=None)


def _slope(sweep: Sweep) -> float | None:
    return _ours(sweep, lambda own: own[0].slope)


def _spread(sweep: Sweep) -> float | None:
    def spread(own: list[Record]) -> float | None:
        peaks = [record.peak_mib for record in own if record.peak_mib]
        return max(peaks) / min(peaks) if len(peaks) > 1 else None

    return _ours(sweep, spread)


# error and whole steps


def _precise(head: Sequence[Record]) -> Target:
    """Whoever was too far off was never timed."""
    wrong = [record for record in head if is_ours(record.provider) and record.state == "wrong"]
    what, wanted = "error against float64, of loss, dh, dw", "at most 1.25 x naive's and a floor"
    if wrong:
        return Target(what, wanted, f"{wrong[0].provider}: {wrong[0].reason}", False, "not timed")
    mine = [record for record in timed(head) if is_ours(record.provider) and record.error]
    return Target(
        what, wanted, f"kept by all {len(mine)} of ours that were timed" if mine else NOTHING, bool(mine) or None
    )


def whole_steps(results: Results) -> Iterator[Target]:
    for row in results.steps:
        if row.provider == "ours":
            yield _at_least(f"trainer: tokens a second by TRL's, V {row.vocabulary:,}", TRAINER, row.ratio_trl)
