"""Which loss, and which reduction of log-probs, takes a real (small) transformer to the Bradley-Terry optimum?

The task is toy/task.py's: a Llama of two layers over a language of 340 responses a prompt, and a reward whose optimum
pi* is known. Responses are samples of pi_ref, fresh in every step, labelled by Bradley-Terry.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from expo_kernels.objectives import make_objective
from expo_kernels.types import Objective
from tools.marked import table
from toy.model import distribution
from toy.preferences import draw_pairs
from toy.task import Task, Trainer, Words, distances, draw_words, make_task


class Settings(NamedTuple):
    steps: int = 500
    pairs: int = 64  # a step
    anchors: int = 64  # samples of the reference a step, for the compositional loss
    lr: float = 2e-3
    corpus_steps: int = 400


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


def train(task: Task, objective: Objective, settings: Settings, seed: int = 0) -> Tensor:
    """-> the trained policy's distribution [X, Y + 1]."""
    model = copy.deepcopy(task.model)
    trainer = Trainer(model, task.language, steps=settings.steps, lr=settings.lr)
    random = torch.Generator().manual_seed(seed)
    reference_logp = task.sampler.log()
    for _ in range(settings.steps):
        pairs = draw_pairs(task.sampler, task.reward, settings.pairs, random)
        groups = Words(pairs.prompt.expand(2, -1), torch.stack([pairs.chosen, pairs.rejected]))
        reference, anchors = None, None
        if objective.needs.reference:
            reference = reference_logp[groups].flatten().float()
        if objective.needs.anchor_scale is not None:
            anchors = draw_words(task.sampler, settings.anchors, random)
        trainer.step(objective, groups, anchors=anchors, reference=reference)
    return distribution(model, task.language)


def sweep(settings: Settings, methods: tuple[Method, ...] = METHODS) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """-> pi_ref's own distances, and a row for each method and value."""
    task = make_task(steps=settings.corpus_steps, batch=4 * settings.pairs, lr=settings.lr)
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
