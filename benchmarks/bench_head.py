"""Time, peak memory and error of the loss head: python -m benchmarks.bench_head --model small --tokens 2048

Every provider is held to the rule of docs/numerics.md before it is timed. Times are medians of interleaved rounds and
the ratio to three library products (two for --mode frozen, one for forward) of the scored tokens in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.cases import KINDS, MODELS
from benchmarks.providers import DTYPES, MODES, PROVIDERS, Workload, step, workload

FLOOR = 2e-5  # relative; fp32 sums of log-probs of a few hundred nats
PARITY_TOKENS = 256


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    shape = {
        "model": args.model, "tokens": args.tokens, "pairs": args.pairs, "dtype": args.dtype, "kind": args.kind,
        "entropy": args.entropy, "masked": args.masked,
    }  # fmt: skip
    small = {**shape, "tokens": min(args.tokens, max(PARITY_TOKENS // (2 * args.pairs), 1) * 2 * args.pairs)}
    errors = require_parity(args.providers, workload(**small), args.mode, args.workspace)
    case = workload(**shape)
    steps = {"products": products(case, args.mode)}
    steps |= {name: step(name, case, args.mode, args.workspace) for name in args.providers}
    times = measure.interleaved(steps, rounds=args.rounds, warmup=args.warmup)
    scored = int((case.labels != -100).sum())
    V, D = case.weight.shape
    del case, steps
    base = times["products"].median
    print(
        f"{args.model} D {D} V {V}, {scored} scored of {args.tokens} tokens, {args.dtype}, {args.kind} "
        f"(entropy {args.entropy}), mode {args.mode}; {measure.environment()}"
    )
    print(f"{'provider':<14} {'ms':>9} {'quartiles':>17} {'products':>9} {'peak MiB':>9}  error of loss, dh, dw")
    for name in args.providers:
        peak = None
        if not args.no_memory:
            peak = measure.peak_bytes(
                "benchmarks.providers:peak_step", provider=name, mode=args.mode, workspace_bytes=args.workspace,
                threads=torch.get_num_threads(), **shape,
            )  # fmt: skip
        row = report(name, times[name], base, peak, errors[name])
        if args.save:
            record = {**measure.environment(), **vars(args), **row, "scored": scored, "products_ms": base * 1e3}
            append(Path(args.save), record)


def require_parity(providers: list[str], case: Workload, mode: str, workspace: int | None) -> dict[str, list[float]]:
    """Errors against float64, in norm; stops where one exceeds 1.25 times naive's plus the floor."""
    exact = step("naive", case._replace(hidden=case.hidden.double(), weight=case.weight.double()), mode)()
    errors = {}
    for name in [*dict.fromkeys(["naive", *providers])]:
        made = step(name, case, mode, workspace)()
        errors[name] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(made, exact, strict=True)]
    for name in providers:
        for what, ours, plain in zip(("loss", "dh", "dw"), errors[name], errors["naive"], strict=False):
            if not ours <= 1.25 * plain + FLOOR:
                sys.exit(f"{name}: error of {what} {ours:.2e} against naive's {plain:.2e}; not timed")
    return errors


def products(case: Workload, mode: str):
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


def report(name: str, time: measure.Timing, base: float, peak: int | None, errors: list[float]) -> dict[str, Any]:
    ms, low, high = (1e3 * x for x in time)
    ratio, mib = ms / (1e3 * base), None if peak is None else peak / 2**20
    shown = "-" if mib is None else f"{mib:.0f}"
    print(
        f"{name:<14} {ms:>9.1f} {low:>8.1f}{high:>9.1f} {ratio:>9.2f} {shown:>9}  "
        + " ".join(f"{e:.1e}" for e in errors),
        flush=True,
    )
    return {
        "provider": name,
        "ms": ms,
        "low_ms": low,
        "high_ms": high,
        "ratio": ratio,
        "peak_mib": mib,
        "error": errors,
    }


def append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_head", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", choices=MODELS, default="small", help="shape of the head")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of all sequences, masked ones included")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--masked", type=float, default=0.0, help="share of each sequence that is prompt")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--kind", choices=KINDS, default="trained", help="what the logits look like (cases.py)")
    parser.add_argument("--entropy", type=float, default=2.0, help="nats, of the kind trained")
    parser.add_argument("--mode", choices=MODES, default="step", help="all gradients, a frozen head, or none")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--workspace", type=int, default=None, help="bytes; the library's default if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds of each provider before the first round")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peaks, each a process of its own")
    parser.add_argument("--save", help="append JSON lines to this file")
    args = parser.parse_args(arguments)
    if args.tokens % (2 * args.pairs):
        parser.error(f"--tokens must be a multiple of {2 * args.pairs}, the sequences of {args.pairs} pairs")
    if not 0.0 <= args.masked < 1.0:
        parser.error("--masked must lie in [0, 1)")
    return args


if __name__ == "__main__":
    main()
