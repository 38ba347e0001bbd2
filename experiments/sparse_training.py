"""Does training with a sparse gradient end where exact training ends? python -m experiments.sparse_training

A small language model of Python's library is trained exactly first; then SFT goes on, and DPO and EXPO learn to prefer
a text's own continuation to another's, each with the exact, the certified and the unbiased gradient, in all seeds. The
table has what is held out: mean nll of SFT, loss and accuracy of the others; the difference from exact in the same seed
with its 95 % interval (Student's), and the spread of exact training over seeds. Last, what a threshold without a bound
does: every entry of the softmax under 2^-12 left out of the gradient, from the first step on.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor
from transformers import LlamaForCausalLM

from experiments.text import Text, model, text, windows
from expo_kernels import Certified, Execution, Unbiased
from expo_kernels.head import Scoring
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective
from expo_kernels.sparsity import Sparsity
from tools import marked

LENGTH, PROMPT, PAIRS = 64, 16, 8  # tokens of a sequence, of its prompt; pairs (SFT: twice as many sequences) of a step
OBJECTIVES = {
    "sft": make_objective("sft"),
    "dpo": make_objective("dpo", beta=0.1),
    "expo_comp": make_objective("expo_comp", lam=0.1, temperature=10.0),
}
REFERENCED = ("dpo",)
THRESHOLD = 2.0**-12


class Settings(NamedTuple):
    V: int = 8192
    width: int = 96
    before: int = 250  # exact steps that all runs of a seed start from
    steps: int = 60
    naive: int = 80
    seeds: int = 5
    held_out: int = 24  # batches


QUICK = Settings(V=1024, width=32, before=30, steps=6, naive=10, seeds=2, held_out=2)
Rule = Callable[[int], Sparsity | None]  # of a step
GRADIENTS: dict[str, Rule] = {
    "exact": lambda step: None,
    "certified, block 2 %": lambda step: Certified(tau=0.02, budget="block"),
    "unbiased, 2^-5": lambda step: Unbiased(theta=2.0**-5, seed=step),
}


class Result(NamedTuple):
    objective: str
    gradient: str
    seed: int
    loss: float  # held out
    accuracy: float  # of pairs; nan for SFT
    kept: float  # mean over steps


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute, too small to say anything")
    parser.add_argument("--publish", action="store_true", help="the table into docs/sparsity.md")
    args = parser.parse_args(argv)
    settings, began = QUICK if args.quick else Settings(), time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = [r for some in pool.starmap(one_seed, [(settings, s) for s in range(settings.seeds)]) for r in some]
    lines = table(results)
    if args.publish:
        marked.write(marked.DOCS / "sparsity.md", "training", lines)
    print(f"{lines}\n\n{time.perf_counter() - began:.0f} s")


def one_seed(settings: Settings, seed: int) -> list[Result]:
    torch.set_num_threads(1)
    data = text(settings.V)
    start = model(settings.V, settings.width, seed)
    train(start, "sft", GRADIENTS["exact"], data, settings.before, seed)
    made = []
    for objective in OBJECTIVES:
        for gradient, rule in GRADIENTS.items():
            policy = copy.deepcopy(start)
            kept = train(policy, objective, rule, data, settings.steps, seed + 1000, reference=start)
            loss, accuracy = measured(policy, start, objective, data, settings.held_out)
            made.append(Result(objective, gradient, seed, loss, accuracy, kept))
    for name, naive in (("exact", False), ("entries under 2^-12 dropped", True)):
        policy = model(settings.V, settings.width, seed)
        train(policy, "sft", GRADIENTS["exact"], data, settings.naive, seed, naive=naive)
        loss, accuracy = measured(policy, start, "sft", data, settings.held_out)
        made.append(Result("sft from nothing", name, seed, loss, accuracy, 1.0))
    return made


def train(
    policy: LlamaForCausalLM, objective: str, rule: Rule, data: Text, steps: int, seed: int,
    reference: LlamaForCausalLM | None = None, naive: bool = False,
) -> float:  # fmt: skip
    """-> the share of the softmax's entries that took part, on average over the steps."""
    random = torch.Generator().manual_seed(seed)
    rate = 3e-3 if objective == "sft" else 3e-4
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
    kept = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20, (steps - step) / 20)
        ids = batch_of(objective, data.train, random)
        if naive:
            loss = thresholded(policy, ids)
        else:
            out = policy(input_ids=ids, scoring=scoring(objective, ids, reference, rule(step)))
            loss, kept = out.loss, kept + (1.0 if out.sparsity is None else float(out.sparsity.kept)) / steps
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    return kept


def batch_of(objective: str, tokens: Tensor, random: torch.Generator) -> Tensor:
    """[2 PAIRS, LENGTH]; of pairs the second half has the first one's prompts and others' continuations."""
    if objective == "sft":
        return windows(tokens, 2 * PAIRS, LENGTH, random)
    chosen = windows(tokens, PAIRS, LENGTH, random)
    other = windows(tokens, PAIRS, LENGTH - PROMPT, random)
    return torch.cat([chosen, torch.cat([chosen[:, :PROMPT], other], 1)])


def scoring(objective: str, ids: Tensor, reference: LlamaForCausalLM | None, rule: Sparsity | None) -> Scoring:
    batch = from_padded(labels_of(objective, ids), roles=1 if objective == "sft" else 2)
    seq = None
    if objective in REFERENCED:
        assert reference is not None, "DPO wants one"
        with torch.no_grad():
            seq = reference(input_ids=ids, scoring=Scoring(batch=batch))
    return Scoring(
        batch=batch, objective=OBJECTIVES[objective], reference=seq, execution=Execution(sparsity=rule)
    )  # fmt: skip


def labels_of(objective: str, ids: Tensor) -> Tensor:
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    if objective != "sft":
        labels[:, : PROMPT - 1] = -100
    return labels


def thresholded(policy: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """The mean nll of SFT, whose gradient in each logit is left out where |p - onehot| is under the threshold."""
    logits = policy(input_ids=ids).logits[:, :-1].flatten(0, 1)
    n = logits.shape[0]
    logits.register_hook(lambda g: torch.where(g.abs() * n < THRESHOLD, 0.0, g))
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())


@torch.no_grad()
def measured(
    policy: LlamaForCausalLM, reference: LlamaForCausalLM, objective: str, data: Text, batches: int
) -> tuple[float, float]:
    """Held out: the mean loss (of SFT the nll), and the share of pairs with a margin above 0."""
    random, losses, right = torch.Generator().manual_seed(0), 0.0, 0.0
    for _ in range(batches):
        ids = batch_of(objective, data.held_out, random)
        out = policy(input_ids=ids, scoring=scoring(objective, ids, reference, None))
        losses += float(out.loss) / batches
        if out.terms.margin is not None:
            right += float((out.terms.margin > 0).double().mean()) / batches
    return losses, right if objective != "sft" else float("nan")


def table(results: list[Result]) -> str:
    headings = (
        "objective",
        "gradient",
        "kept",
        "loss",
        "less exact, same seed",
        "spread of exact",
        "accuracy",
        "less exact, same seed",
    )
    rows = []
    for objective in dict.fromkeys(r.objective for r in results):
        exact = [r for r in results if (r.objective, r.gradient) == (objective, "exact")]
        for gradient in dict.fromkeys(r.gradient for r in results if r.objective == objective):
            own = [r for r in results if (r.objective, r.gradient) == (objective, gradient)]
            pairs = list(zip(own, exact, strict=True))
            losses, shares = [a.loss - b.loss for a, b in pairs], [a.accuracy - b.accuracy for a, b in pairs]
            plain = gradient == "exact"
            known = not any(r.accuracy != r.accuracy for r in own)
            rows.append((
                objective, gradient, f"{mean([r.kept for r in own]):.0%}", f"{mean([r.loss for r in own]):.4f}",
                "" if plain else interval(losses), f"{deviation([r.loss for r in exact]):.4f}" if plain else "",
                f"{mean([r.accuracy for r in own]):.3f}" if known else "",
                interval(shares) if known and not plain else "",
            ))  # fmt: skip
    return marked.table(headings, rows)


def mean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())


def deviation(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std())


def interval(values: list[float]) -> str:
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * deviation(values) / len(values) ** 0.5
    return f"{mean(values):+.4f} ± {reach:.4f}"


if __name__ == "__main__":
    main()
