"""A small language model of code, trained exactly, and what its head is given: python -m experiments.text_lm

Writes the model, and head.safetensors: the hidden states h [N, D] of held-out text, the head w [V, D] and the next
tokens y [N], which `python -m benchmarks.bench_sparse --head` reads (the same file of your own model will do).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from experiments.text import Text, model, text, windows, write_source
from expo_kernels.head import Scoring
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective
from expo_kernels.types import Batch

LENGTH = 128
RATE, WARM = 1e-3, 50  # of AdamW; steps up to it, then down to a tenth of it in a straight line
HELD_OUT = 64  # sequences


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    data = text(args.V, args.source)
    print(f"{len(data.train):,} tokens to train on, {len(data.held_out):,} held out", flush=True)
    policy = model(args.V, args.width, args.seed, wide=2, heads=max(4, args.width // 64))
    train(policy, data, args.steps, args.batch, args.seed)
    policy.save_pretrained(args.out)
    write_source(args.out, args.source, data)
    h, y = scored(policy, data.held_out, args.tokens)
    w = policy.lm_head.weight.detach()
    save_file({"h": h, "w": w.contiguous(), "y": y}, args.out / "head.safetensors")
    print(f"held out: {nll(policy, data.held_out):.3f} nats a token; written to {args.out}")


def train(policy: LlamaForCausalLM, data: Text, steps: int, batch: int, seed: int) -> None:
    """Mean nll of every next token, exact; the same on every run of one thread count."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.95))
    random, began = torch.Generator().manual_seed(seed), time.perf_counter()
    total, since = 0.0, 0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM, 1 - 0.9 * step / steps)
        ids = windows(data.train, batch, LENGTH, random)
        out = policy(input_ids=ids, scoring=Scoring(batch=_next(ids), objective=make_objective("sft")))
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        total, since = total + float(out.loss.detach()), since + 1
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"step {step + 1}: {total / since:.3f} nats, {time.perf_counter() - began:.0f} s", flush=True)
            total, since = 0.0, 0


@torch.no_grad()
def nll(policy: LlamaForCausalLM, tokens: Tensor) -> float:
    """Of HELD_OUT sequences, the same in every call."""
    ids = windows(tokens, HELD_OUT, LENGTH, torch.Generator().manual_seed(1))
    return float(policy(input_ids=ids, scoring=Scoring(batch=_next(ids), objective=make_objective("sft"))).loss)


@torch.no_grad()
def scored(policy: LlamaForCausalLM, tokens: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """-> h [N, D] and y [N], of whole sequences of LENGTH - 1 scored tokens as they come, the last one cut."""
    count = -(-N // (LENGTH - 1))
    ids = windows(tokens, count, LENGTH, torch.Generator().manual_seed(2))
    h = policy.model(input_ids=ids).last_hidden_state[:, :-1]
    return h.reshape(-1, h.shape[-1])[:N].contiguous(), ids[:, 1:].reshape(-1)[:N].contiguous()


def _next(ids: Tensor) -> Batch:
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    return from_padded(labels, roles=1)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("library", "code"), default="code", help="the text")
    parser.add_argument("--V", type=int, default=32000)
    parser.add_argument("--width", type=int, default=1024, help="D; a multiple of 64")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8, help=f"sequences of {LENGTH} tokens of a step")
    parser.add_argument("--seed", type=int, default=0, help="of the new model and of the order of the text")
    parser.add_argument("--tokens", type=int, default=2048, help="of head.safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/text_lm"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
