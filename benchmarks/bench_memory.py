"""Peak memory above inputs and gradients, against tokens and length: python -m benchmarks.bench_memory

Each provider in a process of its own: the peak of what is resident on a CPU, of torch's allocator on a GPU. Ours must
be flat in the length of a sequence, and no larger than its workspace and one fp32 dw. Parity is checked first.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from benchmarks import options, sweep
from benchmarks.measured import Plan, Row, Verdict, describe, judge, process_peaks, row_of, save
from benchmarks.providers import workload
from benchmarks.records import Record, command_of

USUAL = sweep.Defaults(
    D=256, V=16000, tokens=(1024, 2048, 4096, 8192), vocabularies=(), lengths=(64, 256, 1024, 4096), length=256,
    fixed_tokens=8192,
)  # fmt: skip
WORKSPACE = 128 << 20  # bytes: small beside the logits, as 1 GiB is beside a real model's


def main(arguments: list[str] | None = None) -> None:
    args, sweeps = parse(arguments)
    plan = Plan("memory", args.mode, args.workspace, rounds=None, command=command_of("bench_memory", arguments))
    settings = list(dict.fromkeys(setting for one in sweeps for setting in one.settings))
    verdicts = judge(args.providers, settings[0], args.mode, args.workspace)
    admitted = [name for name, verdict in verdicts.items() if verdict.state == "timed"]
    known, saved = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for setting in settings:
            case = workload(setting)
            known[setting], saved[setting] = describe(case, setting, plan), save(case, Path(folder))
        held = process_peaks(admitted, saved, plan)
    for one in sweeps:
        rows = [
            [
                _row(name, verdict, dataclasses.replace(known[setting], axis=one.axis), held, settings.index(setting))
                for name, verdict in verdicts.items()
            ]
            for setting in one.settings
        ]
        rows = sweep.with_slopes(one, rows, mebibytes)
        sweep.show(one, rows, mebibytes, "peak MiB above inputs and gradients")
        flat = [row for made in rows for row in made]
        options.save(args, flat)
        options.finish(flat)


def _row(name: str, verdict: Verdict, known: Record, held: dict[str, list[int | str]], place: int) -> Row:
    return row_of(name, verdict, known, {}, held[name][place] if name in held else None)


def mebibytes(record: Record) -> float | None:
    return record.peak_mib


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[sweep.Sweep]]:
    parser = options.parser_of("bench_memory", __doc__)
    sweep.add_sizes(parser, USUAL, ("tokens", "length"))
    options.add_workload(parser)
    options.add_run(parser, rounds=None)
    parser.set_defaults(workspace=WORKSPACE)
    args = parser.parse_args(arguments)
    return args, sweep.sweeps_of(parser, args)


if __name__ == "__main__":
    main()
