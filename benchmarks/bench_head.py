"""Time, peak memory and error of the loss head: python -m benchmarks.bench_head --model small --tokens 2048

Every provider is held against float64 before it is timed: ours to the rule of docs/numerics.md, the peers to four times
the error of naive PyTorch. Times are medians of interleaved rounds and the ratio to three library products (two for
--mode frozen, one for forward) of the scored tokens in the same run; peaks are above inputs and gradients.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks import options
from benchmarks.cases import MODELS, Setting
from benchmarks.measured import Plan, judge, measured, show
from benchmarks.records import command_of


def main(arguments: list[str] | None = None) -> None:
    args, setting = parse(arguments)
    plan = Plan(
        "head", args.mode, args.workspace, args.rounds, args.warmup, memory=not args.no_memory,
        command=command_of("bench_head", arguments),
    )  # fmt: skip
    verdicts = judge(args.providers, setting, args.mode, args.workspace)
    torch.compiler.reset()  # or what is timed would be compiled for any number of tokens
    rows = measured(setting, plan, verdicts)
    show(rows)
    options.save(args, rows)
    options.finish(rows)


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Setting]:
    parser = options.parser_of("bench_head", __doc__)
    parser.add_argument("--model", help=f'shape of the head: {", ".join(MODELS)} or "DxV"; default small')
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of all sequences, masked ones included")
    parser.add_argument("--pairs", type=int, default=4)
    options.add_workload(parser)
    options.add_run(parser)
    parser.add_argument("--no-memory", action="store_true", help="leave out the peaks, each a process of its own")
    args = parser.parse_args(arguments)
    model = options.model_name(parser, args.model, args.kind, "small")
    return args, options.setting_of(parser, args, model, args.tokens, args.pairs)


if __name__ == "__main__":
    main()
