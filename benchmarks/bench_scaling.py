"""Time against tokens, vocabulary and length: python -m benchmarks.bench_scaling

Where the cost is linear, the slope of log(time) against log(size) is 1; against the length at a fixed number of tokens
it is 0. Parity first and interleaved rounds as in bench_head; who is compiled is compiled for any size. The sizes suit
a CPU: on a GPU give larger ones, or overheads are all there is.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from benchmarks import options, sweep
from benchmarks.measured import Plan, Row, Verdict, judge, measured
from benchmarks.records import AXES, Record, command_of

USUAL = sweep.Defaults(
    D=64, V=2048, tokens=(1024, 2048, 4096, 8192, 16384, 32768),
    vocabularies=(8192, 16384, 32768, 65536, 131072, 262144), lengths=(16, 64, 256, 1024), length=128,
    fixed_tokens=2048,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args, sweeps = parse(arguments)
    command = command_of("bench_scaling", arguments)
    for one in sweeps:
        plan = Plan(
            "scaling", args.mode, args.workspace, args.rounds, args.warmup, memory=False, command=command, axis=one.axis
        )
        verdicts: Mapping[str, Verdict] = {}
        rows: list[list[Row]] = []
        for setting in one.settings:
            if not rows or one.axis == "vocabulary":  # another head
                verdicts = judge(args.providers, setting, args.mode, args.workspace)
            rows.append(measured(setting, plan, verdicts))
        rows = sweep.with_slopes(one, rows, milliseconds)
        sweep.show(one, rows, milliseconds, "ms")
        flat = [row for made in rows for row in made]
        options.save(args, flat)
        options.finish(flat)


def milliseconds(record: Record) -> float | None:
    return record.ms


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[sweep.Sweep]]:
    parser = options.parser_of("bench_scaling", __doc__)
    sweep.add_sizes(parser, USUAL, AXES)
    options.add_workload(parser)
    options.add_run(parser, rounds=3, warmup=0.0)
    args = parser.parse_args(arguments)
    return args, sweep.sweeps_of(parser, args)


if __name__ == "__main__":
    main()
