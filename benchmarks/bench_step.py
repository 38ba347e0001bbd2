"""Tokens a second and peak memory of whole training steps: python -m benchmarks.bench_step

This trainer with its fused head, with a naive one and with compiled ones, and TRL's DPOTrainer: one model, the same
pairs of mixed lengths in the same batches, the same reference log-probs and optimizer, each in a process of its own.
They take turns, so compare the figures of one run only. Who differs from ours in the losses or gradient norms of the
first steps is shown as wrong and not timed; who cannot run is shown as missing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import measure
from benchmarks.records import append, command_of
from benchmarks.steps import case as step_case
from benchmarks.steps.case import MODELS, Case
from benchmarks.steps.providers import PROVIDERS, Provider
from benchmarks.steps.worker import Failed, Seen, Turn, Worker

CHECKED = 2  # steps of each provider that are compared before any is timed: at the start, and after one update
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # relative; bf16 rounds logits, by up to 0.06 nats a token
RIVALS = ("compiled", "trl")
RESULTS = measure.ROOT / "benchmarks" / "results"
ON_A_CPU = """
On a CPU TRL's head is its slow fallback: plain torch in place of its Triton kernels, on all positions of the padded
batch. The honest rival here is compiled; compiled-scored leaves out prompts and padding, as ours does.
"""


class Row(NamedTuple):
    """What came of a provider."""

    provider: str
    state: str  # timed, wrong or missing
    reason: str = ""
    first: tuple[tuple[float, float], ...] = ()  # loss and gradient norm of the first steps
    batches: tuple[Seen, ...] = ()  # of the first steps, then of the timed ones
    tokens_per_second: measure.Timing | None = None
    ratios: Mapping[str, float | None] = {}  # to the rivals' speed; above 1 is faster
    extra_peak: int | None = None  # bytes, of the last of the first steps, above what stands before it
    standing: int | None = None


def bench(case: Case, steps: int, rounds: int, providers: Mapping[str, Provider]) -> list[Row]:
    """The first provider is the one that the others have to agree with."""
    refused: dict[str, Row] = {}
    workers: dict[str, Worker] = {}
    first: dict[str, Turn] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step_case.write(case, folder)
        try:
            for provider, build in providers.items():
                workers[provider] = Worker(build, case, folder, folder / provider, CHECKED)
                found = _admit(provider, workers[provider], next(iter(first.values()), None), case.dtype)
                if isinstance(found, Row):
                    refused[provider] = found
                    workers.pop(provider).stop()
                else:
                    first[provider] = found
                if not first:
                    raise RuntimeError(f"{provider}, which the others are compared with: {refused[provider].reason}")
            turns = _rounds(workers, refused, steps, rounds)
        finally:
            for worker in workers.values():
                worker.stop()
    return [
        refused[provider] if provider in refused else _row(provider, first[provider], turns, steps)
        for provider in providers
    ]


def _admit(provider: str, worker: Worker, truth: Turn | None, dtype: str) -> Turn | Row:
    """The first steps; of the last of them the memory."""
    found = worker.answer()
    for steps, memory in ((CHECKED - 1, False), (1, True)):
        if isinstance(found, Turn):
            found = worker.turn(steps, memory=memory)
    if isinstance(found, Failed):
        return Row(provider, "missing", found.reason)
    wrong = None if truth is None else difference(found, truth, TOLERANCE[dtype])
    return found if wrong is None else Row(provider, "wrong", wrong, found.first)


def difference(found: Turn, truth: Turn, tolerance: float) -> str | None:
    """In words, where there is one."""
    for step in range(CHECKED):
        own, wanted = found.batches[step], truth.batches[step]
        if own != wanted:
            return (
                f"batch of step {step + 1}: want {wanted.tokens} tokens as ours, got {own.tokens}, other or elsewhere"
            )
        for what, value, right in zip(("loss", "gradient norm"), found.first[step], truth.first[step], strict=True):
            if not abs(value - right) <= tolerance * abs(right):
                return f"{what} of step {step + 1}: want {right:.7g} within {tolerance:g}, got {value:.7g}"
    return None


def _rounds(workers: dict[str, Worker], refused: dict[str, Row], steps: int, rounds: int) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {provider: [] for provider in workers}
    for _ in range(rounds):
        for provider in list(workers):
            made = workers[provider].turn(steps)
            if isinstance(made, Turn):
                turns[provider].append(made)
            else:
                refused[provider] = Row(provider, "missing", made.reason)
                workers.pop(provider).stop()
    return turns


def _row(provider: str, first: Turn, turns: Mapping[str, list[Turn]], steps: int) -> Row:
    own = turns[provider]
    tokens = [batch.tokens for batch in own[-1].batches[CHECKED : CHECKED + steps * len(own)]]
    speeds = [sum(tokens[i * steps : (i + 1) * steps]) / turn.seconds for i, turn in enumerate(own)]
    assert first.peak is not None and first.standing is not None, "the last of the first steps was watched"
    return Row(
        provider, "timed", "", first.first, own[-1].batches[: CHECKED + len(tokens)], measure.summary(speeds),
        {rival: _ratio(turns.get(rival, []), own) for rival in RIVALS}, first.peak - first.standing, first.standing,
    )  # fmt: skip


def _ratio(rival: list[Turn], own: list[Turn]) -> float | None:
    """The median over the rounds, each of the same batches; None where the rival did not make them all."""
    if len(rival) < len(own):
        return None
    return statistics.median(theirs.seconds / ours.seconds for theirs, ours in zip(rival, own, strict=True))


# what is shown and saved


def show(case: Case, rows: list[Row]) -> None:
    batches = next((row.batches for row in rows if row.batches), ())
    body, timed, watched = MODELS[case.model], batches[CHECKED:], batches[CHECKED - 1 : CHECKED]
    print(
        f"{case.model}: D {body.hidden}, {body.layers} layers, V {case.vocabulary}, {case.dtype}, {case.pairs} pairs a "
        f"step; {measure.environment()}\n"
        f"timed: {len(timed)} steps, {_size(timed)}; peak: of one step, {_size(watched)}"
    )
    print(f"{'provider':<16} {'tokens/s':>9} {'quartiles':>17} {'x compiled':>11} {'x trl':>6} {'extra peak MiB':>15}")
    for row in rows:
        if row.tokens_per_second is None or row.extra_peak is None:
            print(f"{row.provider:<16} {row.state}: {row.reason}")
            continue
        median, low, high = row.tokens_per_second
        ratios = ["-" if row.ratios[rival] is None else f"{row.ratios[rival]:.2f}" for rival in RIVALS]
        print(
            f"{row.provider:<16} {median:>9.0f} {low:>8.0f} {high:>8.0f} {ratios[0]:>11} {ratios[1]:>6} "
            f"{row.extra_peak / 2**20:>15.0f}"
        )
    sys.stdout.flush()


def _size(batches: tuple[Seen, ...]) -> str:
    tokens, positions, scored = (sum(int(batch[i]) for batch in batches) for i in (1, 2, 3))
    return f"{tokens} tokens ({scored} scored) in {positions} positions"


def record(case: Case, row: Row, args: argparse.Namespace, command: str) -> dict[str, Any]:
    speed = row.tokens_per_second or (None, None, None)
    return {
        **measure.environment(), **{name: _version(name) for name in ("transformers", "trl")}, "command": command,
        "model": case.model, "body": MODELS[case.model]._asdict(), "vocabulary": case.vocabulary, "dtype": case.dtype,
        "pairs": case.pairs, "longest": case.longest, "steps": args.steps, "rounds": args.rounds,
        "workspace_mb": case.workspace_mb, "provider": row.provider, "state": row.state, "reason": row.reason,
        "tokens_per_second": speed[0], "low": speed[1], "high": speed[2],
        **{f"ratio_{rival}": row.ratios.get(rival) for rival in RIVALS},
        "extra_peak_mib": None if row.extra_peak is None else row.extra_peak / 2**20,
        "standing_mib": None if row.standing is None else row.standing / 2**20,
        "losses": [loss for loss, _ in row.first], "grad_norms": [norm for _, norm in row.first],
        "batches": [batch[1:] for batch in row.batches],
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    command = command_of("bench_step", arguments)
    for V in args.vocabulary:
        case = Case(
            model=args.model, vocabulary=V, pairs=args.pairs, longest=args.longest, dtype=args.dtype,
            workspace_mb=args.workspace_mb, total=CHECKED + args.rounds * args.steps,
        )  # fmt: skip
        rows = bench(case, args.steps, args.rounds, {name: PROVIDERS[name] for name in ("ours", *args.providers)})
        show(case, rows)
        for row in rows if args.save else ():
            append(Path(args.save), record(case, row, args, command))
    if not torch.cuda.is_available():
        print(ON_A_CPU)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_step", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    rivals = [name for name in PROVIDERS if name != "ours"]
    where = "cuda" if torch.cuda.is_available() else "cpu"
    today = RESULTS / f"{measure.environment()['date']}-{where}-step.jsonl"
    parser.add_argument("--model", choices=MODELS, default="small", help="the body")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32000, 128256])
    parser.add_argument("--pairs", type=int, default=4, help="of a step")
    parser.add_argument("--steps", type=int, default=1, help="of a provider's turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each provider")
    parser.add_argument("--longest", type=int, default=512, help="tokens of prompt and response")
    parser.add_argument("--dtype", choices=TOLERANCE, default="fp32")
    parser.add_argument("--workspace-mb", type=int, default=1024, help="of the fused loss; the trainer's default")
    parser.add_argument("--providers", nargs="+", choices=rivals, default=rivals, help="beside ours")
    parser.add_argument("--save", nargs="?", const=str(today), help="append JSON lines, to this file or a dated one")
    args = parser.parse_args(arguments)
    for name, least in (("pairs", 1), ("steps", 1), ("rounds", 1), ("longest", 8)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if min(args.vocabulary) < 16:
        parser.error("--vocabulary must be at least 16")
    return args


if __name__ == "__main__":
    main()
