"""The table of errors in docs/numerics.md: python -m benchmarks.accuracy

Relative error in norm against float64, root mean square over five seeds: plain PyTorch in the same dtype, then ours.
--save appends a record of each ("naive", then the backend), whose error is that of nll, dh, dw and db.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import measure, options
from benchmarks.cases import DTYPES, KINDS, head_case
from benchmarks.records import Record, append, command_of
from expo_kernels import Execution, HeadOptions, reference, token_logprob
from expo_kernels.layout import from_packed

SEEDS = 5
WORKSPACE = 64 << 20
WHAT = ("nll", "dh", "dw", "db")


def errors(kind: str, dtype: torch.dtype, N: int, D: int, V: int, softcap: float | None) -> list[tuple[float, float]]:
    """(plain, ours) for each of WHAT."""
    squares = torch.zeros(len(WHAT), 2, dtype=torch.float64)
    for seed in range(SEEDS):
        h, w, y = head_case(N, D, V, kind=kind, dtype=dtype, seed=seed)
        bias = torch.zeros(V, dtype=dtype)
        batch = from_packed(y, torch.arange(N + 1), roles=1)
        c = torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

        def gradients(function, dtype, operands=(h, w, bias), batch=batch, c=c, **more) -> list[Tensor]:
            leaves = [x.to(dtype).detach().clone().requires_grad_() for x in operands]
            logp = function(leaves[0], leaves[1], batch, head=HeadOptions(bias=leaves[2], softcap=softcap), **more)
            return [logp.detach(), *torch.autograd.grad((logp * c.to(logp.dtype)).sum(), leaves)]

        exact = gradients(reference.token_logprob, torch.float64)
        plain = gradients(reference.token_logprob, dtype)
        ours = gradients(token_logprob, dtype, execution=Execution(backend="plain", workspace_bytes=WORKSPACE))
        for i, (t, p, o) in enumerate(zip(exact, plain, ours, strict=True)):
            squares[i] += torch.stack([(x.double() - t).norm() / t.norm() for x in (p, o)]).square()
    return [(math.sqrt(p / SEEDS), math.sqrt(o / SEEDS)) for p, o in squares.tolist()]


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser_of("accuracy", __doc__)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--D", type=int, default=256)
    parser.add_argument("--V", type=int, default=8003)
    parser.add_argument("--softcap", type=float)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--save", type=Path, help="append the records, as JSON lines, to this file")
    args = parser.parse_args(arguments)
    command = command_of("accuracy", arguments)
    print("| dtype | logits | " + " | ".join(f"{x}: plain | ours" for x in WHAT) + " |")
    print("| --- " * (2 + 2 * len(WHAT)) + "|")
    for name in args.dtypes:
        for kind in KINDS:
            cells = errors(kind, DTYPES[name], args.tokens, args.D, args.V, args.softcap)
            print(f"| {name} | {kind} | " + " | ".join(f"{p:.1e} | {o:.1e}" for p, o in cells) + " |", flush=True)
            if args.save:
                for provider, error in zip(("naive", "plain"), zip(*cells, strict=True), strict=True):
                    append(args.save, record(args, command, name, kind, provider, error))


def record(
    args: argparse.Namespace, command: str, dtype: str, kind: str, provider: str, error: tuple[float, ...]
) -> Record:
    return Record(
        **measure.environment(), command=command, bench="accuracy", provider=provider, state="timed", D=args.D,
        V=args.V, softcap=args.softcap, tokens=args.tokens, scored=args.tokens, dtype=dtype, kind=kind,
        workspace=WORKSPACE, error=error,
    )  # fmt: skip


if __name__ == "__main__":
    main()
