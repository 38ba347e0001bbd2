"""What a sparse gradient costs and what it leaves out: python -m benchmarks.bench_sparse

A step of SFT on all tokens (every coefficient alike: what is hardest to leave out), forward and backward, everything
timed, by the rules of expo_kernels.sparsity and exactly, interleaved with three products of the library (of the
inputs' dtype where the machine multiplies that at speed, else of fp32). Beside the time: the share of the columns that
was kept, the mass that was dropped, the distance from the exact gradient, and how that compares with what the batch's
own choice of sequences does to dw. And Cut Cross-Entropy's filter of 128 x 128 tiles, by its own threshold, on the same
probabilities: what it would keep and drop (it was not timed here).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import measure, options
from benchmarks.cases import DTYPES, HeadCase, head_case, log_softmax, observed, usual_dtype
from benchmarks.measure import Timing
from benchmarks.own_head import own_case, read_head
from benchmarks.records import command_of
from expo_kernels import Certified, Execution, LossOutput, Unbiased, preference_loss
from expo_kernels.layout import from_packed
from expo_kernels.objectives import make_objective
from expo_kernels.sparsity import Sparsity

SEQUENCES = 16
ENTROPIES = (1.0, 1.3, 2.0, 2.5)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE, FILTER = 128, 2.0**-12  # Cut Cross-Entropy's
WAYS: dict[str, Sparsity | None] = {
    "exact": None,
    "certified, row 0.5 %": Certified(tau=0.005),
    "certified, row 5 %": Certified(tau=0.05),
    "certified, block 0.5 %": Certified(tau=0.005, budget="block"),
    "certified, block 2 %": Certified(tau=0.02, budget="block"),
    **{f"unbiased, 2^-{k}": Unbiased(theta=2.0**-k, seed=1) for k in (9, 8, 7, 6)},
}


class Step(NamedTuple):
    """Everything of one step, and its gradients."""

    case: HeadCase
    batch: Any
    execution: Execution

    def __call__(self) -> tuple[LossOutput, Tensor, Tensor]:
        h, w = (x.detach().requires_grad_() for x in self.case[:2])
        out = preference_loss(h, w, self.batch, make_objective("sft"), execution=self.execution)
        dh, dw = torch.autograd.grad(out.loss, (h, w))
        return out, dh, dw


def main(arguments: list[str] | None = None) -> None:
    parser = options.parser_of("bench_sparse", __doc__)
    parser.add_argument("--shapes", nargs="+", help="DxV; default: 1024x32000")
    parser.add_argument(
        "--head", type=Path, help="instead of --shapes: a model's own (benchmarks.own_head), called by its folder"
    )
    parser.add_argument("--entropies", nargs="+", type=float, help="nats; default: 1, 1.3, 2, 2.5, or the head's own")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; default: its own")
    parser.add_argument("--save", type=Path, help="append the rows, as JSON lines, to this file")
    args = parser.parse_args(arguments)
    if args.head is not None and args.shapes:
        parser.error("--head has its own shape: want no --shapes")
    command = command_of("bench_sparse", arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    for case in cases(args):
        (V, D), workload = case.w.shape, "trained" if args.head is None else args.head.resolve().parent.name
        rows = compare(case, args.ways, args.backend, args.rounds)
        header = f"N {args.tokens}, D {D}, V {V}, {workload}, {args.dtype}, {rows[0]['entropy']:.2f} nats; "
        header += f"three {product_dtype(case)} products"
        print(f"\n{header} {rows[0]['products_s']:.2f} s\n" + "\n".join(map(line, rows)), flush=True)
        early = ", ".join(f"{name} {share:.1%}" for name, share in early_lists(case).items())
        print(f"columns above 2^-14 somewhere in a block, by what is known of the log-sum-exp: {early}", flush=True)
        if args.save:
            what = {"workload": workload, "D": D, "V": V, "tokens": args.tokens, "dtype": args.dtype}
            write(args.save, rows, {"command": command, **what})


def cases(args: argparse.Namespace) -> Iterator[HeadCase]:
    dtype = DTYPES[args.dtype]
    if args.head is not None:
        whole = read_head(args.head)
        for entropy in args.entropies or [None]:
            yield own_case(whole, args.tokens, entropy, dtype, DEVICE)
        return
    for shape in args.shapes or ["1024x32000"]:
        D, V = map(int, shape.split("x"))
        for entropy in args.entropies or ENTROPIES:
            yield head_case(args.tokens, D, V, entropy=entropy, dtype=dtype, device=DEVICE)


def compare(case: HeadCase, ways: list[str], backend: str, rounds: int) -> list[dict[str, Any]]:
    """The exact step first: every other one is checked against it before anything is timed."""
    names = ["exact", *(name for name in ways if name != "exact")]
    N = case.h.shape[0]
    batch = from_packed(case.y.cpu(), torch.arange(0, N + 1, N // SEQUENCES), roles=1).to(DEVICE)
    steps = {name: Step(case, batch, Execution(backend=backend, sparsity=WAYS[name])) for name in names}
    _, *exact = steps["exact"]()
    noise = spread_of_sequences(case, backend, exact[1])
    rows: list[dict[str, Any]] = []
    for name in names:
        out, *made = steps[name]()
        rows.append({"way": name, **left_out(out, made, exact, noise)})
        check(name, rows[-1], out)
    timed: dict[str, Callable[[], object]] = {
        "products": three_products(case),
        **{k: s.__call__ for k, s in steps.items()},
    }
    times = measure.interleaved(timed, rounds=rounds, warmup=0.0)
    entropy = float(observed(case).entropy.mean())
    for row in rows:
        row |= seconds(times[row["way"]], times["products"]) | {"entropy": entropy, "rounds": rounds}
    kept, dropped = filtered_tiles(case)
    rows.append({
        "way": "tiles of Cut CE, 2^-12", "kept": kept, "dropped_mean": dropped, "entropy": entropy,
        "products_s": rows[0]["products_s"],
    })  # fmt: skip
    return rows


def three_products(case: HeadCase) -> Callable[[], object]:
    """Of operands that are there."""
    h, w = (x.to(DTYPES[product_dtype(case)]) for x in case[:2])
    z = h.new_empty(h.shape[0], w.shape[0])

    def run() -> tuple[Tensor, Tensor]:
        torch.mm(h, w.T, out=z)
        return z @ w, z.T @ h

    return run


def product_dtype(case: HeadCase) -> str:
    """Where bf16 instructions are missing, the library is many times slower at 16 bits than in fp32."""
    slow = case.h.element_size() == 2 and usual_dtype() == "fp32"
    return next(name for name, dtype in DTYPES.items() if dtype == (torch.float32 if slow else case.h.dtype))


def left_out(out: LossOutput, made: list[Tensor], exact: list[Tensor], noise: float) -> dict[str, float]:
    told = out.sparsity
    if told is None:
        return {"kept": 1.0, "dropped_mean": 0.0, "dropped_max": 0.0, "dh": 0.0, "dw": 0.0, "of_noise": 0.0}
    off = [distance(a, b) for a, b in zip(made, exact, strict=True)]
    return {
        "kept": float(told.kept), "dropped_mean": float(told.dropped_mean), "dropped_max": float(told.dropped_max),
        "exact_rows": float(told.exact), "dh": off[0] / norm(exact[0]), "dw": off[1] / norm(exact[1]),
        "of_noise": (off[1] / noise) ** 2, "dh_abs": off[0], "dw_abs": off[1],
        "dh_bound": float(told.d_hidden), "dw_bound": float(told.d_weight),
    }  # fmt: skip


def check(name: str, row: dict[str, Any], out: LossOutput) -> None:
    """A certified distance is within its bound, and an unbiased one within four times its root mean square, besides
    the rounding of both gradients to their dtype."""
    if out.sparsity is None:
        return
    for part in ("dh", "dw"):
        rounding = 0.005 * row[f"{part}_abs"] / max(row[part], 1e-30)
        room = row[f"{part}_bound"] * (1 if name.startswith("certified") else 4) + rounding
        if not row[f"{part}_abs"] <= room:
            raise RuntimeError(f"{name}: want {part} within {room:.3g} of the exact one, got {row[f'{part}_abs']:.3g}")


def spread_of_sequences(case: HeadCase, backend: str, dw: Tensor) -> float:
    """The standard error of dw over the choice of the batch's G sequences: the root of G / (G - 1) sum of
    |dw_g - mean|^2, each sequence's own gradient dw_g being made exactly."""
    N, squares = case.h.shape[0], 0.0
    T = N // SEQUENCES
    for i in range(0, N, T):
        own = HeadCase(case.h[i : i + T], case.w, case.y[i : i + T])
        batch = from_packed(own.y.cpu(), torch.tensor([0, T]), roles=1).to(DEVICE)
        squares += (norm(Step(own, batch, Execution(backend=backend))()[2]) / SEQUENCES) ** 2
    return (SEQUENCES / (SEQUENCES - 1) * (squares - norm(dw) ** 2 / SEQUENCES)) ** 0.5


def filtered_tiles(case: HeadCase) -> tuple[float, float]:
    """-> the share of 128 x 128 tiles with an entry of |p - onehot| of at least 2^-12, and the mass of the others."""
    kept = tiles = dropped = 0.0
    for logp, y in zip(log_softmax(case.h, case.w, None), case.y.split(256), strict=True):
        p = logp.exp()
        g = p.scatter_add(1, y[:, None], -torch.ones_like(p[:, :1])).abs()
        for i in range(0, p.shape[0], TILE):
            some = g[i : i + TILE]
            edges = torch.nn.functional.pad(some, (0, -some.shape[1] % TILE)).amax(0).view(-1, TILE).amax(1)
            out = (edges < FILTER).repeat_interleave(TILE)[: p.shape[1]]
            kept, tiles = kept + float((edges >= FILTER).sum()), tiles + edges.numel()
            dropped += float(p[i : i + TILE][:, out].sum())
    return kept / tiles, dropped / case.h.shape[0]


def early_lists(case: HeadCase, threshold: float = 2.0**-14, strip: int = 2048) -> dict[str, float]:
    """The share of columns that some row of a block of 128 holds above the threshold: by the true softmax, and by what
    a forward that stores nothing could know before its product: a lower bound of each row's log-sum-exp, from the
    label's logit alone, or with a strip of the columns that are the most probable in another half of the batch."""
    half = case.h.shape[0] // 2
    totals = torch.stack([logp.exp().sum(0) for logp in log_softmax(case.h[half:], case.w, None)]).sum(0)
    frequent = totals.topk(min(strip, totals.numel())).indices
    kept = {"true": 0.0, "label": 0.0, "label and strip": 0.0}
    columns = 0
    for logp, y in zip(log_softmax(case.h[:half], case.w, None), case.y[:half].split(256), strict=True):
        p = logp.exp()
        own = p.gather(1, y[:, None])
        both = p[:, frequent].sum(1, keepdim=True) + torch.where(
            (y[:, None] == frequent).any(1, keepdim=True), 0.0, own
        )
        for name, share in (("true", torch.ones_like(own)), ("label", own), ("label and strip", both)):
            above = (p / share).split(TILE)
            kept[name] += sum(float((some.amax(0) >= threshold).sum()) for some in above)
        columns += p.shape[1] * len(p.split(TILE))
    return {name: count / columns for name, count in kept.items()}


def norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def distance(a: Tensor, b: Tensor) -> float:
    """A few rows at a time: no copy of the head in float64."""
    return sum(norm(p.float() - q.float()) ** 2 for p, q in zip(a.split(4096), b.split(4096), strict=True)) ** 0.5


def seconds(own: Timing, products: Timing) -> dict[str, float]:
    return {
        "s": own.median, "low_s": own.low, "high_s": own.high, "products_s": products.median,
        "ratio": own.median / products.median,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    ratio = f"{row['ratio']:5.2f}" if "ratio" in row else "    -"
    text = f"{row['way']:26} {ratio} of three products   kept {row['kept']:7.2%}   dropped {row['dropped_mean']:7.3%}"
    if "dw" in row:
        text += f" (most {row['dropped_max']:7.2%})   dh off {row['dh']:.1e}   dw off {row['dw']:.1e}"
        text += f"   of the batch's variance {row['of_noise']:.1e}"
    return text


def write(path: Path, rows: list[dict[str, Any]], more: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**measure.environment(), **more, **row}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
