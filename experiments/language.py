"""Which loss, and which reduction of log-probs, takes a real (small) transformer to the Bradley-Terry optimum?

A Llama of two layers over a language of 340 responses a prompt. pi_ref is that model, trained on a corpus; the reward
is log pi_ref plus a random score, so pi* = softmax(reward) is known; responses are samples of pi_ref, fresh in every
step, labelled by Bradley-Terry. Distances are exact, averaged over prompts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM

from expo_kernels.fused_expo_loss import preference_loss
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective
from expo_kernels.types import Objective
from tools.marked import table
from toy.language import Language
from toy.model import distribution, hidden_states, small_lm
from toy.preferences import bradley_terry_optimum, draw_pairs


class Settings(NamedTuple):
    steps: int = 500
    pairs: int = 64  # a step
    anchors: int = 64  # samples of the reference a step, for the compositional loss
    lr: float = 2e-3
    corpus_steps: int = 400


class Task(NamedTuple):
    language: Language
    model: LlamaForCausalLM  # pi_ref
    reference: Tensor  # [X, Y + 1] its distribution
    reference_logp: Tensor  # [X, Y]
    reward: Tensor  # [X, Y]
    best: Tensor  # [X, Y + 1] pi*


@dataclass(frozen=True)
class Method:
    title: str
    name: str
    parameter: str
    values: tuple[float, ...]
    fixed: tuple[tuple[str, object], ...] = ()


COMP, REG, BETA = (1e-3, 0.03, 0.1, 0.3, 1.0, 10.0), (0.0, 0.2, 0.5, 0.8, 1.0), (0.01, 0.1, 0.3, 1.0, 3.0)
ANCHORS = ("samples", "anchors")
METHODS = (
    Method("EXPO (comp), sum", "expo_comp", "lam", COMP, (ANCHORS,)),
    Method("EXPO (comp), mean", "expo_comp", "lam", COMP, (ANCHORS, ("logp_reduction", "mean"))),
    Method("EXPO (comp), temperature 4", "expo_comp", "lam", COMP, (ANCHORS, ("temperature", 4.0))),
    Method("EXPO (reg), sum", "expo_reg", "lam", REG),
    Method("EXPO (reg), mean", "expo_reg", "lam", REG, (("logp_reduction", "mean"),)),
    Method("EXPO (reg), temperature 4", "expo_reg", "lam", REG, (("temperature", 4.0),)),
    Method("DPO, sum", "dpo", "beta", BETA),
    Method("DPO, mean", "dpo", "beta", BETA, (("logp_reduction", "mean"),)),
    Method("IPO, sum", "ipo", "beta", BETA),
    Method("IPO, mean", "ipo", "beta", BETA, (("logp_reduction", "mean"),)),
    Method("SimPO, no margin", "simpo", "beta", (0.5, 2.0, 5.0), (("margin", 0.0),)),
    Method("SimPO, margin beta / 2", "simpo", "beta", (0.5, 2.0, 5.0), (("gamma_beta_ratio", 0.5),)),
)


def make_task(settings: Settings, language: Language | None = None, seed: int = 0) -> Task:
    """Trains pi_ref on a corpus drawn from a random score of words; the reward adds another score."""
    language = language or Language()
    corpus = torch.softmax(language.features(seed), -1)
    model = small_lm(language.tokenizer, seed=seed)
    optimizer, schedule = _optimizer(model, settings.corpus_steps, settings.lr)
    random = torch.Generator().manual_seed(seed)
    objective = make_objective("sft")
    for _ in range(settings.corpus_steps):
        prompt = torch.randint(0, len(language.prompts), (4 * settings.pairs,), generator=random)
        y = torch.multinomial(corpus[prompt], 1, generator=random)[:, 0]
        _step(model, optimizer, schedule, language, objective, prompt[None], y[None])
    reference = distribution(model, language)
    logp = reference[:, :-1].log()
    reward = logp + 1.5 * language.features(seed + 1)
    best = bradley_terry_optimum(reward)
    return Task(language, model, reference, logp, reward, torch.cat([best, torch.zeros_like(best[:, :1])], 1))


def train(task: Task, objective: Objective, settings: Settings, seed: int = 0) -> Tensor:
    """-> the trained policy's distribution [X, Y + 1]."""
    model = copy.deepcopy(task.model)
    optimizer, schedule = _optimizer(model, settings.steps, settings.lr)
    random = torch.Generator().manual_seed(seed)
    sampler = task.reference[:, :-1]
    for _ in range(settings.steps):
        pairs = draw_pairs(sampler, task.reward, settings.pairs, random)
        prompt, y = pairs.prompt.expand(2, -1), torch.stack([pairs.chosen, pairs.rejected])
        reference, anchors = None, None
        if objective.needs.reference:
            reference = task.reference_logp[prompt, y].flatten().float()
        if objective.needs.anchor_scale is not None:
            at = torch.randint(0, len(sampler), (settings.anchors,), generator=random)
            anchors = (at, torch.multinomial(sampler[at], 1, generator=random)[:, 0])
        _step(model, optimizer, schedule, task.language, objective, prompt, y, reference, anchors)
    return distribution(model, task.language)


def distances(policy: Tensor, task: Task) -> dict[str, float]:
    """Of distributions [X, Y + 1]; means over prompts. KL in nats, to the policy. "outside" is the mass on what is no
    response of the language, "inside" the policy given that it says one."""

    def tv(q: Tensor) -> float:
        return float((policy - q).abs().sum(1).mean() / 2)

    def kl(q: Tensor) -> float:
        return float(torch.where(q > 0, q * (q.log() - policy.log()), 0.0).sum(1).mean())

    inside = policy[:, :-1] / policy[:, :-1].sum(1, keepdim=True)
    mode = torch.zeros_like(task.best).scatter_(1, task.best.argmax(1, keepdim=True), 1.0)
    return {
        "tv_best": tv(task.best),
        "tv_best_inside": float((inside - task.best[:, :-1]).abs().sum(1).mean() / 2),
        "kl_best": kl(task.best),
        "tv_reference": tv(task.reference),
        "kl_reference": kl(task.reference),
        "tv_mode": tv(mode),
        "kl_mode": kl(mode),
        "outside": float(policy[:, -1].mean()),
    }


def sweep(settings: Settings, methods: tuple[Method, ...] = METHODS) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """-> pi_ref's own distances, and a row for each method and value."""
    task = make_task(settings)
    rows: list[dict[str, Any]] = []
    jobs = [(method, value) for method in methods for value in method.values]
    for method, value in tqdm(jobs, desc=f"{'language':28}", unit="run", leave=False, disable=None):
        objective = make_objective(method.name, **{method.parameter: value}, **dict(method.fixed))
        made = distances(train(task, objective, settings), task)
        rows.append({"method": method.title, "parameter": value, **made})
    return distances(task.reference, task), rows


def report(out: Path, quick: bool) -> str:
    """Writes figure, CSV and table; -> the table."""
    from experiments import figures, tables

    start, rows = sweep(Settings(steps=150, corpus_steps=200) if quick else Settings())
    figures.save(figures.language(rows, start), out, "language")
    tables.write_csv(out / "language.csv", [_rounded(row) for row in rows])
    names = list(start)
    lines = [("pi_ref", "", *(f"{start[name]:.3f}" for name in names))]
    for method in dict.fromkeys(row["method"] for row in rows):
        for row in (row for row in rows if row["method"] == method):
            lines.append((row["method"], f"{row['parameter']:g}", *(f"{row[name]:.3f}" for name in names)))
    text = table(("method", "lambda or beta", *names), lines)
    (out / "language.md").write_text(text + "\n")
    return text


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}


def _optimizer(
    model: LlamaForCausalLM, steps: int, lr: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.01 * lr)


def _step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler,
    language: Language, objective: Objective, prompt: Tensor, y: Tensor, reference: Tensor | None = None,
    anchors: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """prompt and y [K, P] name the groups' sequences, role by role; anchors: those of the unlabelled ones [A]."""
    A = 0 if anchors is None else len(anchors[0])
    if anchors is not None:
        prompt, y = torch.cat([prompt.flatten(), anchors[0]]), torch.cat([y.flatten(), anchors[1]])
        K = 2
    else:
        K, prompt, y = len(prompt), prompt.flatten(), y.flatten()
    ids, labels = (tokens[prompt, y] for tokens in language.tokens)
    batch = from_padded(labels, roles=K, anchors=A)
    loss = preference_loss(hidden_states(model, ids), model.lm_head.weight, batch, objective, reference=reference).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
