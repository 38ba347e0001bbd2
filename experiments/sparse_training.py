"""Does training with a sparse gradient end where exact training ends? python -m experiments.sparse_training --start DIR

DIR is a small language model that experiments.text_lm wrote, or several, which the seeds take in turn. SFT goes on from
there, by AdamW and by SGD, and DPO and EXPO learn to prefer a text's own continuation to another's, each with the
exact, the certified and the unbiased gradient, in all seeds: of the data's order. The table has what is held out: mean
nll of SFT, loss and accuracy of the others; the difference from exact in the same seed with its 95 % interval
(Student's), and the spread of exact training over seeds. Last ("new"), what a threshold without a bound does: every
entry of the softmax under 2^-12 is left out of the gradient, of a new model and the same words in a random order, many
of which are rarer than that.
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor
from transformers import LlamaForCausalLM

from experiments.text import Text, model, shuffled, text_beside, windows
from expo_kernels import Certified, Execution, Unbiased
from expo_kernels.head import Scoring, attach
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


class Task(NamedTuple):
    objective: str
    optimizer: str
    rate: float


TASKS = {
    "sft": Task("sft", "AdamW", 1e-4),
    "sft, SGD": Task("sft", "SGD", 0.02),
    "dpo": Task("dpo", "AdamW", 3e-4),
    "expo_comp": Task("expo_comp", "AdamW", 1e-4),
}
NEW = Task("sft", "AdamW", 3e-3)  # of a new model
EVERY = (*TASKS, "new")


class Settings(NamedTuple):
    starts: tuple[str, ...]  # folders
    steps: int = 80
    new: int = 150  # steps of a new model
    width: int = 64  # its own
    seeds: int = 5
    held_out: int = 16  # batches


Rule = Callable[[int], Sparsity | None]  # of a step
GRADIENTS: dict[str, Rule] = {
    "exact": lambda step: None,
    "certified, block 2 %": lambda step: Certified(tau=0.02, budget="block"),
    "unbiased, 2^-7": lambda step: Unbiased(theta=2.0**-7, seed=step),
}
NAIVE = "entries under 2^-12 dropped"


class Result(NamedTuple):
    task: str
    gradient: str
    seed: int
    loss: float  # held out
    accuracy: float  # of pairs; nan for SFT
    kept: float  # mean over steps


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", required=True, nargs="+", help="folders that experiments.text_lm wrote")
    parser.add_argument("--tasks", nargs="+", choices=EVERY, default=EVERY)
    parser.add_argument("--quick", action="store_true", help="too small to say anything")
    parser.add_argument("--publish", action="store_true", help="the table into docs/sparsity.md")
    args = parser.parse_args(argv)
    settings, began = Settings(tuple(args.start)), time.perf_counter()
    if args.quick:
        settings = settings._replace(steps=4, new=4, seeds=2, held_out=1)
    rare = text_of(settings).share_rarer_than(THRESHOLD)
    print(f"{rare:.1%} of the text is words rarer than the threshold", flush=True)
    lines = table(results(settings, args.tasks))
    if args.publish:
        marked.write(marked.DOCS / "sparsity.md", "training", lines)
    print(f"{lines}\n\n{time.perf_counter() - began:.0f} s")


def results(settings: Settings, tasks: Sequence[str]) -> list[Result]:
    jobs = [(settings, name, seed) for name in tasks for seed in range(settings.seeds)]
    made = []
    with multiprocessing.get_context("spawn").Pool(2, torch.set_num_threads, (1,)) as pool:
        for some in pool.imap(job, jobs):
            made += some
            print(*some, sep="\n", flush=True)
    return made


def job(work: tuple[Settings, str, int]) -> list[Result]:
    settings, name, seed = work
    return new_model(settings, seed) if name == "new" else from_start(settings, name, seed)


def from_start(settings: Settings, name: str, seed: int) -> list[Result]:
    data, start = text_of(settings), load(settings, seed)
    before = measured(start, start, TASKS[name].objective, data, settings.held_out)
    made = [Result(name, "the start", seed, *before, float("nan"))]
    for gradient, rule in GRADIENTS.items():
        policy = copy.deepcopy(start)
        kept = train(policy, TASKS[name], rule, data, settings.steps, seed + 1000, reference=start)
        loss, accuracy = measured(policy, start, TASKS[name].objective, data, settings.held_out)
        made.append(Result(name, gradient, seed, loss, accuracy, kept))
    return made


def new_model(settings: Settings, seed: int) -> list[Result]:
    """Of words whose probabilities are all that there is to learn."""
    data, made = shuffled(text_of(settings), seed), []
    for gradient in ("exact", "unbiased, 2^-7", NAIVE):
        policy, naive = model(data.V, settings.width, seed), gradient == NAIVE
        rule = GRADIENTS["exact" if naive else gradient]
        kept = train(policy, NEW, rule, data, settings.new, seed, naive=naive)
        loss, accuracy = measured(policy, policy, NEW.objective, data, settings.held_out)
        made.append(Result("sft, new, shuffled", gradient, seed, loss, accuracy, float("nan") if naive else kept))
    return made


def load(settings: Settings, seed: int) -> LlamaForCausalLM:
    made = LlamaForCausalLM.from_pretrained(settings.starts[seed % len(settings.starts)])
    attach(made)
    return made


def text_of(settings: Settings) -> Text:
    first, *others = (text_beside(Path(folder)) for folder in settings.starts)
    if any(other is not first for other in others):
        raise ValueError(f"sparse_training: want starts of one text, got {', '.join(settings.starts)}")
    return first


def train(
    policy: LlamaForCausalLM, task: Task, rule: Rule, data: Text, steps: int, seed: int,
    reference: LlamaForCausalLM | None = None, naive: bool = False,
) -> float:  # fmt: skip
    """-> the share of the softmax's entries that took part, on average over the steps."""
    random = torch.Generator().manual_seed(seed)
    optimizer = optimizer_of(policy, task)
    kept = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = task.rate * min(1.0, (step + 1) / 20, (steps - step) / 20)
        ids = batch_of(task.objective, data.train, random)
        if naive:
            loss = thresholded(policy, ids)
        else:
            out = policy(input_ids=ids, scoring=scoring(task.objective, ids, reference, rule(step)))
            loss, kept = out.loss, kept + (1.0 if out.sparsity is None else float(out.sparsity.kept)) / steps
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    return kept


def optimizer_of(policy: LlamaForCausalLM, task: Task) -> torch.optim.Optimizer:
    if task.optimizer == "SGD":
        return torch.optim.SGD(policy.parameters(), lr=task.rate, momentum=0.9)
    return torch.optim.AdamW(policy.parameters(), lr=task.rate, weight_decay=0.0)


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
        "task", "gradient", "kept", "loss", "less exact, same seed", "spread of exact", "accuracy",
        "less exact, same seed",
    )  # fmt: skip
    rows = []
    for task, gradient in dict.fromkeys((r.task, r.gradient) for r in results):
        exact, own = ([r for r in results if (r.task, r.gradient) == (task, g)] for g in ("exact", gradient))
        pairs = list(zip(own, exact, strict=True))
        losses, shares = [a.loss - b.loss for a, b in pairs], [a.accuracy - b.accuracy for a, b in pairs]
        plain, of_pairs = gradient in ("exact", "the start"), not any(math.isnan(r.accuracy) for r in own)
        kept, spread = mean([r.kept for r in own]), deviation([r.loss for r in exact])
        rows.append((
            task, gradient, "" if math.isnan(kept) else f"{kept:.0%}", f"{mean([r.loss for r in own]):.4f}",
            "" if plain else interval(losses), f"{spread:.4f}" if gradient == "exact" else "",
            f"{mean([r.accuracy for r in own]):.3f}" if of_pairs else "",
            interval(shares) if of_pairs and not plain else "",
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
