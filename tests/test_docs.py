"""The code in the documents runs, and says what it says."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import logsigmoid

import expo_kernels
from expo_kernels import Needs, SequenceLogprobs, Terms, preference_loss, reference
from expo_kernels.fused_expo_loss import expo_loss
from expo_kernels.layout import from_padded
from expo_kernels.objectives import check_objective
from tools import marked, objectives_table

ROOT = Path(__file__).parent.parent
README, ARCHITECTURE = (ROOT / "README.md").read_text(), (ROOT / "docs" / "architecture.md").read_text()
P, T, D, V = 3, 6, 8, 20


def code(text: str, after: str) -> str:
    """The first indented block after a line of the document."""
    rest = text[text.index(after) + len(after) :]
    return textwrap.dedent(re.search(r"\n\n((?:    .*\n|\n)+)", rest).group(1))


def test_before_and_after_agree():
    h, weight = torch.randn(2 * P, T, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64)
    hidden = h.requires_grad_()
    labels = torch.randint(0, V, (2 * P, T))
    labels[:, 0] = -100
    names = {"hidden": hidden, "weight": weight, "labels": labels, "torch": torch, "lam": 0.2}
    names["reference"] = -torch.rand(2 * P, dtype=torch.float64) * 20
    exec(code(README, "## Before and after").replace(".float()", ""), names)
    names["loss"].backward()
    before, hidden.grad = hidden.grad, None
    exec(code(README, "\nbecomes"), names)
    assert torch.allclose(names["out"].loss, names["loss"], rtol=1e-12)
    assert torch.allclose(hidden.grad, before, rtol=1e-9, atol=1e-15)
    assert set(re.findall(r"`(\w+)`", README.split("`out` has")[1].split(".")[0])) <= set(
        expo_kernels.LossOutput._fields
    )


class Model(torch.nn.Module):
    """As much of a Hugging Face model as the README uses."""

    def __init__(self):
        super().__init__()
        self.embedding, self.lm_head = torch.nn.Embedding(V, D), torch.nn.Linear(D, V, bias=False)

    def model(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.embedding(input_ids).cumsum(1))


def test_the_training_step_runs():
    ids, prompt = torch.randint(0, V, (2 * P, T)), torch.zeros(2 * P, T, dtype=torch.bool)
    prompt[:, :2] = True
    model, ref_model = Model(), Model()
    names = {
        "model": model, "ref_model": ref_model, "input_ids": ids, "prompt_or_padding": prompt, "mask": ~prompt,
        "device": "cpu", "pairs_of_the_whole_step": P,
    }  # fmt: skip
    exec(code(README, "## A training step"), names)
    assert (
        names["out"].loss.isfinite() and bool(model.lm_head.weight.grad.any()) and ref_model.lm_head.weight.grad is None
    )
    assert bool(model.embedding.weight.grad.any())


def test_the_batches_and_the_head_of_the_readme():
    labels, cu = torch.randint(0, V, (6, T)), torch.arange(0, 6 * T + 1, T)
    flat = {"cu_seqlens": cu, "rows": torch.arange(6 * T), "A": 2, "w": torch.ones(2), "F": 2, "k": 3}
    for line in code(README, "### Batches").splitlines():
        first = labels.flatten() if "from_packed(" in line else labels
        exec(line, {**vars(expo_kernels.layout), **flat, "labels": first, "weights": torch.ones(6, T)})
    names = {"hidden": torch.randn(6, T, D), "weight": torch.randn(V, D), "bias": torch.zeros(V)}
    exec(code(README, "### Any objective, any head"), {**names, "batch": from_padded(labels)})


def test_the_calls_of_the_objectives_page():
    page, k, F, A = (ROOT / "docs" / "objectives.md").read_text(), 3, 2, 3
    names = {"weight": torch.randn(V, D), "ref_weight": torch.randn(V, D), "k": k, "F": F, "A": A}
    for suffix, rows in (("", 2 * P), ("_kto", P + F), ("_k", k * P), ("_a", 2 * P + A)):
        names |= {
            f"labels{suffix}": torch.randint(0, V, (rows, T)), f"hidden{suffix}": torch.randn(rows, T, D),
            f"reference{suffix}": -30 * torch.rand(rows),
        }  # fmt: skip
    names |= {
        "gap": torch.arange(1, P + 1), "desirable": torch.arange(P) % 2 == 0, "reward": torch.arange(k * P),
        "ref_hidden": names["hidden"], "references": -30 * torch.rand(3, 2 * P), "pairs_of_the_step": 2 * P,
        "chosen_tokens_of_the_step": 2 * P * T,
    }  # fmt: skip
    text = (
        code(page, "## How to call them")
        .replace("\nloss(", "\nmade = loss(")
        .replace("\npreference", "\nmade = preference")
    )
    parts = text.split("\nmade = ")
    exec(parts[0], names)
    assert len(parts) == 8
    for part in parts[1:]:
        exec("made = " + part, names)
        assert bool(names["made"].loss.isfinite())


def test_the_tables_of_objectives_are_those_of_the_classes():
    for name, text in objectives_table.generated().items():
        assert marked.read(objectives_table.PAGES[name], name) == text, "python -m tools.objectives_table --write"


def test_the_objective_of_the_architecture_page():
    names = {
        "dataclass": dataclass, "ClassVar": ClassVar, "Needs": Needs, "SequenceLogprobs": SequenceLogprobs,
        "Terms": Terms, "torch": torch, "logsigmoid": logsigmoid, "check_objective": check_objective,
    }  # fmt: skip
    exec(code(ARCHITECTURE, "DPO, in full:"), names)
    hidden, weight, labels = torch.randn(4, T, D), torch.randn(V, D), torch.randint(0, V, (4, T))
    batch = from_padded(labels)
    at_start = expo_kernels.sequence_logprob(hidden, weight, batch)
    out = preference_loss(hidden, weight, batch, names["DPO"](), reference=at_start)
    assert bool((out.terms.margin == 0).all()) and float(out.loss) == pytest.approx(0.6931472)
    exact = reference.preference_loss(hidden, weight, batch, names["DPO"](), reference=at_start)
    assert torch.allclose(out.loss, exact)


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_expo_loss_names_itself_in_errors():
    with pytest.raises(ValueError, match="expo_loss: want labels below"):
        expo_loss(torch.randn(2, 3, 4), torch.randn(5, 4), torch.full((2, 3), 9), variant="comp", lam=1.0)
