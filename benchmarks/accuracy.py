"""The table of errors in docs/numerics.md: python -m benchmarks.accuracy

Relative error in norm against float64, root mean square over five seeds: plain PyTorch in the same dtype, then ours.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from benchmarks.cases import KINDS, head_case
from benchmarks.providers import DTYPES
from expo_kernels import Execution, HeadOptions, reference, token_logprob
from expo_kernels.layout import from_packed

SEEDS = 5
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
        ours = gradients(token_logprob, dtype, execution=Execution(workspace_bytes=64 << 20))
        for i, (t, p, o) in enumerate(zip(exact, plain, ours, strict=True)):
            squares[i] += torch.stack([(x.double() - t).norm() / t.norm() for x in (p, o)]).square()
    return [(math.sqrt(p / SEEDS), math.sqrt(o / SEEDS)) for p, o in squares.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--D", type=int, default=256)
    parser.add_argument("--V", type=int, default=8003)
    parser.add_argument("--softcap", type=float)
    args = parser.parse_args()
    print("| dtype | logits | " + " | ".join(f"{x}: plain | ours" for x in WHAT) + " |")
    print("| --- " * (2 + 2 * len(WHAT)) + "|")
    for name, dtype in DTYPES.items():
        for kind in KINDS:
            cells = errors(kind, dtype, args.tokens, args.D, args.V, args.softcap)
            print(f"| {name} | {kind} | " + " | ".join(f"{p:.1e} | {o:.1e}" for p, o in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
