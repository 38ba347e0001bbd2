"""The task on the enumerable language: a reference model, a reward, and the exact answer that training must reach.

pi_ref is a small model trained on a corpus; the reward is log pi_ref plus a random score, so pi* = softmax(reward) is
known. Distances and accuracies are exact, means over prompts. X prompts, Y responses; the last column of [X, Y + 1] is
everything else that a model may say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from expo_kernels import Objective, preference_loss
from expo_kernels.layout import from_padded
from expo_kernels.objectives import make_objective
from toy.language import Language
from toy.model import distribution, hidden_states, small_lm
from toy.preferences import bradley_terry_optimum


class Words(NamedTuple):
    """Responses of the language, by index."""

    prompt: Tensor  # of any shape
    response: Tensor  # of the same shape


@dataclass(frozen=True, eq=False)
class Truth:
    """What a policy is scored against."""

    language: Language
    reference: Tensor  # [X, Y + 1] pi_ref
    best: Tensor  # [X, Y + 1] pi*


@dataclass(frozen=True, eq=False)
class Task(Truth):
    model: LlamaForCausalLM  # pi_ref itself
    reward: Tensor  # [X, Y]

    @property
    def sampler(self) -> Tensor:
        """[X, Y] pi_ref on the language's own responses."""
        return self.reference[:, :-1]


class Trainer:
    """AdamW with a cosine schedule over `steps` steps, on responses named by their indices."""

    def __init__(self, model: LlamaForCausalLM, language: Language, *, steps: int, lr: float) -> None:
        self.model, self.language = model, language
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, steps, eta_min=0.01 * lr)

    def step(
        self, objective: Objective, groups: Words, *, anchors: Words | None = None, reference: Tensor | None = None
    ) -> None:
        """groups [K, P], role by role; anchors [A], unlabelled; reference [K * P] log-probs, where it is declared."""
        K, P = groups.prompt.shape
        words = [(groups.prompt.flatten(), groups.response.flatten())]
        if anchors is not None:
            words.append(anchors)
        prompt, response = (torch.cat(part) for part in zip(*words, strict=True))
        ids, labels = (tokens[prompt, response] for tokens in self.language.tokens)
        batch = from_padded(labels, roles=K, anchors=len(prompt) - K * P)
        hidden, weight = hidden_states(self.model, ids), self.model.lm_head.weight
        loss = preference_loss(hidden, weight, batch, objective, reference=reference).loss
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()


def make_task(
    language: Language | None = None, *, steps: int = 400, batch: int = 256, lr: float = 2e-3, seed: int = 0
) -> Task:
    """Trains pi_ref on a corpus drawn from a random score of words; the reward adds another score."""
    language = language or Language()
    corpus = torch.softmax(language.features(seed), -1)
    model = small_lm(language.tokenizer, seed=seed)
    trainer = Trainer(model, language, steps=steps, lr=lr)
    random = torch.Generator().manual_seed(seed)
    objective = make_objective("sft")
    for _ in range(steps):
        words = draw_words(corpus, batch, random)
        trainer.step(objective, Words(words.prompt[None], words.response[None]))
    reference = distribution(model, language)
    reward = reference[:, :-1].log() + 1.5 * language.features(seed + 1)
    best = bradley_terry_optimum(reward)
    best = torch.cat([best, torch.zeros_like(best[:, :1])], 1)
    return Task(language=language, reference=reference, best=best, model=model, reward=reward)


def draw_words(sampler: Tensor, count: int, random: torch.Generator) -> Words:
    """sampler [X, Y]: a response of it for each of `count` random prompts."""
    prompt = torch.randint(0, len(sampler), (count,), generator=random)
    return Words(prompt, torch.multinomial(sampler[prompt], 1, generator=random)[:, 0])


def distances(policy: Tensor, truth: Truth) -> dict[str, float]:
    """Of distributions [X, Y + 1]; means over prompts. KL in nats, to the policy. "outside" is the mass on what is no
    response of the language, "inside" the policy given that it says one."""

    def tv(q: Tensor) -> float:
        return float((policy - q).abs().sum(1).mean() / 2)

    def kl(q: Tensor) -> float:
        return float(torch.where(q > 0, q * (q.log() - policy.log()), 0.0).sum(1).mean())

    inside = policy[:, :-1] / policy[:, :-1].sum(1, keepdim=True)
    mode = torch.zeros_like(truth.best).scatter_(1, truth.best.argmax(1, keepdim=True), 1.0)
    return {
        "tv_best": tv(truth.best),
        "tv_best_inside": float((inside - truth.best[:, :-1]).abs().sum(1).mean() / 2),
        "kl_best": kl(truth.best),
        "tv_reference": tv(truth.reference),
        "kl_reference": kl(truth.reference),
        "tv_mode": tv(mode),
        "kl_mode": kl(mode),
        "outside": float(policy[:, -1].mean()),
    }


def accuracy(policy: Tensor, truth: Truth) -> float:
    """How often the policy [X, Y + 1] gives the preferred response the higher probability, on fresh pairs.

    The expectation over what preferences.draw_pairs draws: two different responses of pi_ref, the winner by
    Bradley-Terry. A tie counts one half.
    """
    q, p, best = (x[:, :-1] for x in (truth.reference, policy, truth.best))
    q = q / q.sum(1, keepdim=True)
    drawn = q[:, :, None] * q[:, None, :] / (1.0 - q[:, :, None])  # [X, Y, Y] first, then second
    drawn.diagonal(dim1=1, dim2=2).zero_()
    wins = best[:, :, None] / (best[:, :, None] + best[:, None, :])  # that the first is preferred
    higher = torch.heaviside(p[:, :, None] - p[:, None, :], p.new_tensor(0.5))
    return float((drawn * (higher * wins + (1.0 - higher) * (1.0 - wins))).sum((1, 2)).mean())
