"""What packed rows and shared prompts save: python -m benchmarks.bench_packing

Counted: the tokens a body reads, with lengths like those of HH and UltraFeedback, padded, packed and with a group's
prompt once. Measured: loss and gradients of a small Llama on pairs of equal length whose prompt is a growing share,
in turns; each way's loss and gradient norm must be the padded one's before anything is timed. On a CPU packing is by a
mask, quadratic in the row: a gain in time is not to be expected of it, but of sharing prompts it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks import measure
from benchmarks.records import Record, append, command_of
from expo_kernels.head import Scoring, attach
from expo_kernels.objectives import make_objective
from train.attention import Packing, choose
from train.layouts import Group, Layout
from train.order import StepOrder
from train.settings import ModelSettings

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)  # of a sequence that is prompt
TOLERANCE = 1e-4  # relative, of loss and gradient norm in fp32
WAYS = ("padded", "packed", "shared")


class Lengths(NamedTuple):
    """Log-normal, in tokens: medians and the spread of their logarithm."""

    prompt: float
    response: float
    prompt_spread: float
    response_spread: float


# dialogue histories and short answers; short instructions and long answers
DATA = {"HH-like": Lengths(81, 55, 0.8, 0.8), "UltraFeedback-like": Lengths(110, 300, 1.0, 0.75)}
LONGEST = {"HH-like": 1024, "UltraFeedback-like": 2048}


def drawn(name: str, groups: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """prompts [P], responses [P, 2], together at most LONGEST."""
    own, random, most = DATA[name], torch.Generator().manual_seed(seed), LONGEST[name]
    prompt = _log_normal((groups,), own.prompt, own.prompt_spread, random).clamp(max=most // 2)
    response = _log_normal((groups, 2), own.response, own.response_spread, random)
    return prompt, torch.minimum(response, most - prompt[:, None])


def _log_normal(shape: tuple[int, ...], median: float, spread: float, random: torch.Generator) -> torch.Tensor:
    return (median * torch.exp(spread * torch.randn(shape, generator=random))).int() + 1


def counted(name: str, per_rank: int, groups: int = 4000) -> dict[str, int]:
    """Tokens a body reads in an epoch, padding with them; micro-batches of so many pairs, as the trainer draws them."""
    prompt, response = drawn(name, groups)
    read = dict.fromkeys(WAYS, 0)
    for micro in StepOrder(groups, per_rank=per_rank, seed=0):
        whole = prompt[micro, None] + response[micro]
        read["padded"] += int(whole.max()) * whole.numel()
        read["packed"] += int(whole.sum())
        read["shared"] += int(prompt[micro].sum() + response[micro].sum())
    return read


def packings(device: torch.device) -> dict[str, Packing]:
    """The ways that run here."""
    asked = {"padded": ("none", False), "packed": ("auto", False), "shared": ("mask", True)}
    return {
        way: choose(ModelSettings(model="-", packing=packing, shared_prompts=shared), device)
        for way, (packing, shared) in asked.items()
    }


def pairs(share: float, count: int, length: int, vocabulary: int) -> list[Group]:
    random = torch.Generator().manual_seed(0)
    prompt = max(round(share * length), 1)

    def ids(n: int) -> list[int]:
        return torch.randint(vocabulary, (n,), generator=random).tolist()

    return [Group(ids(prompt), [ids(length - prompt), ids(length - prompt)]) for _ in range(count)]


def step(model: PreTrainedModel, packing: Packing, some: list[Group]) -> Callable[[], tuple[float, float]]:
    """-> the loss and the norm of its gradient."""
    implementation, device = packing.implementation, model.device
    inputs, batch = Layout(packing.packed, packing.shared_prompts)(some)
    inputs, batch = inputs.map(lambda x: x.to(device)), batch.to(device)

    def run() -> tuple[float, float]:
        model.config._attn_implementation = implementation
        model.zero_grad()
        scoring = Scoring(batch=batch, objective=make_objective("simpo"))
        out = model(**packing.model_inputs(inputs), scoring=scoring)
        out.loss.backward()
        norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
        return float(out.loss.detach()), float(norms.norm())

    return run


def agree(steps: dict[str, Callable[[], tuple[float, float]]]) -> None:
    want = steps["padded"]()
    for way, run in steps.items():
        got = run()
        if any(abs(a - b) > TOLERANCE * abs(b) for a, b in zip(got, want, strict=True)):
            sys.exit(f"{way}: want loss and gradient norm {want} of padded rows, got {got}; nothing is timed")


def measured(args: argparse.Namespace, save: Callable[[Record], None]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = LlamaConfig(
        vocab_size=args.V, hidden_size=args.D, intermediate_size=4 * args.D, num_hidden_layers=args.layers,
        num_attention_heads=args.D // 64, num_key_value_heads=args.D // 64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = attach(LlamaForCausalLM(config)).to(device)  # type: ignore[arg-type]
    found = packings(device)
    titles = "".join(f"{f'{way} ({found[way].kind})':>24}" for way in WAYS)
    print(f"\nprompt share  {titles}   ms, x padded's speed")
    for share in args.shares:
        some = pairs(share, args.pairs, args.length, args.V)
        steps = {way: step(model, packing, some) for way, packing in found.items()}
        agree(steps)
        times = measure.interleaved(steps, rounds=args.rounds, warmup=args.warmup)
        base = times["padded"].median
        cells = "".join(f"{1e3 * times[way].median:>15.0f} {base / times[way].median:>8.2f}" for way in WAYS)
        print(f"{share:>12.0%}  {cells}", flush=True)
        for way in WAYS:
            tokens = 2 * args.pairs * args.length if way != "shared" else sum(_once(group) for group in some)
            save(
                _timed(
                    record(args, way, "timed", f"{found[way].kind}, prompt share {share:.2f}"), tokens, args, times, way
                )
            )


def _timed(one: Record, tokens: int, args: argparse.Namespace, times: dict[str, measure.Timing], way: str) -> Record:
    """ratio: to padded rows."""
    median, low, high = (1e3 * seconds for seconds in times[way])
    return dataclasses.replace(
        one, tokens=tokens, pairs=args.pairs, rounds=args.rounds, D=args.D, V=args.V, ms=median, low_ms=low,
        high_ms=high, ratio=times[way].median / times["padded"].median,
    )  # fmt: skip


def _once(group: Group) -> int:
    return len(group.prompt) + sum(len(response) for response in group.responses)


def record(args: argparse.Namespace, way: str, state: str, kind: str) -> Record:
    reason = "tokens, not time" if state == "counted" else ""
    return Record(
        **measure.environment(),
        command=args.command, bench="packing", provider=way, state=state, reason=reason, kind=kind,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    args.command = command_of("bench_packing", arguments)

    def save(one: Record) -> None:
        if args.save:
            append(args.save, one)

    print(f"tokens read, micro-batches of {args.micro} pairs, shares of the padded; {measure.environment()['device']}")
    for name in DATA:
        read = counted(name, args.micro)
        print(f"{name:<20}" + "".join(f"{way} {read[way] / read['padded']:.2f}   " for way in WAYS))
        for way in WAYS:
            one = record(args, way, "counted", name)
            save(dataclasses.replace(one, tokens=read[way], pairs=args.micro, ratio=read[way] / read["padded"]))
    measured(args, save)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_packing", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--micro", type=int, default=8, help="pairs of a micro-batch, where tokens are counted")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="prompt shares that are measured")
    parser.add_argument("--pairs", type=int, default=4, help="of a measured step")
    parser.add_argument("--length", type=int, default=256, help="tokens of prompt and response")
    parser.add_argument("--D", type=int, default=256)
    parser.add_argument("--V", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=float, default=0.5)
    parser.add_argument("--save", type=Path, help="append JSON lines to this file")
    args = parser.parse_args(arguments)
    if args.D % 64:
        parser.error(f"--D: want a multiple of 64, the width of a head, got {args.D}")
    if not all(0 <= share < 1 for share in args.shares):
        parser.error(f"--shares: want shares in [0, 1), got {args.shares}")
    return args


if __name__ == "__main__":
    main()
