"""Policies that are tables, softmax(theta) for each prompt: every lambda and every seed trained as one batch.

The loss and its coefficients are the library's objectives, called on all pairs of all runs at once; what lies below
them, d logp / d theta, is exact here. R runs, X prompts, Y responses, B pairs of a mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from expo_kernels.objectives import make_objective
from expo_kernels.types import Counts, Objective, SequenceLogprobs
from toy.bandit import bradley_terry_fit

BATCH = 20
CLIP = 10.0  # of each run's gradient norm


class World(NamedTuple):
    best: Tensor  # [X, Y] pi*, whose Bradley-Terry preferences label the pairs
    reference: Tensor  # [X, Y] pi_ref

    def preferences(self) -> Tensor:
        """p*(y1 > y2)  [X, Y, Y]"""
        return self.best[:, :, None] / (self.best[:, :, None] + self.best[:, None, :])


def world(best: list[list[float]], reference: list[list[float]]) -> World:
    return World(torch.tensor(best, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64))


INTERPOLATION = world([[0.6, 0.3, 0.1]], [[0.4, 0.4, 0.2]])
PRESERVATION = world([[0.6, 0.3, 0.1], [0.4, 0.2, 0.4]], [[0.6, 0.3, 0.1], [0.6, 0.2, 0.2]])  # good, bad: eq. 20


@dataclass(frozen=True)
class Method:
    """An objective with one parameter left open, and how it is trained."""

    title: str
    name: str
    parameter: str
    epochs: int = 1000
    lr: float = 1e-3
    highest: float = float("inf")  # of the parameter
    fixed: tuple[tuple[str, object], ...] = ()
    sampled: bool = False  # the unsupervised term by samples of the reference, not exactly

    def over(self, values: Tensor) -> Objective:
        """The objective with a value of the parameter for each pair [P]."""
        objective = make_objective(self.name, **{self.parameter: 0.5}, **dict(self.fixed))
        # the classes check that a parameter is one number; here it is one for each pair, of checked ones
        swept = object.__new__(type(objective))
        swept.__dict__.update({**objective.__dict__, self.parameter: values})
        return swept


def _expo(title: str, name: str, **more: object) -> Method:
    return Method(title, name, "lam", lr=5e-4, **more)  # type: ignore[arg-type]


METHODS = (
    Method("DPO", "dpo", "beta"),
    Method("IPO", "ipo", "beta"),
    Method("f-DPO (JS)", "fdpo", "beta", epochs=3000, fixed=(("divergence", "js"),)),
    _expo("EXPO (comp)", "expo_comp", fixed=(("samples", "anchors"),)),
    _expo("EXPO (reg)", "expo_reg", highest=1.0),
    _expo("EXPO (comp, sampled)", "expo_comp", fixed=(("samples", "anchors"),), sampled=True),
)


class Runs(NamedTuple):
    """L lambdas and S seeds of one method, R = L S runs."""

    method: Method
    lambdas: Tensor  # [L]
    epochs: Tensor  # [E] after which the policies were recorded
    policies: Tensor  # [E, L, S, X, Y]

    @property
    def final(self) -> Tensor:
        """[L, S, X, Y]"""
        return self.policies[-1]


def draw_pairs(world: World, each: int, seeds: int) -> Tensor:
    """[S, N, 2] flat indices x Y + y of (chosen, rejected): every pair of responses equally often, `each` in all for
    a prompt, labelled by Bradley-Terry."""
    X, Y = world.best.shape
    random = torch.Generator().manual_seed(0)
    couples = torch.combinations(torch.arange(Y))  # [C, 2]
    couples = couples.repeat(-(-each // len(couples)), 1)[:each]
    first, second = couples.T
    chances = world.preferences()[:, first, second]  # [X, each]
    wins = torch.rand(seeds, X, each, generator=random, dtype=torch.float64) < chances
    ordered = torch.where(wins[..., None], couples, couples.flip(1))  # [S, X, each, 2]
    return (ordered + Y * torch.arange(X)[:, None, None]).flatten(1, 2)


def train_sampled(
    method: Method, world: World, pairs: Tensor, lambdas: Tensor, *, epochs: int | None = None, records: int = 50,
    tick: Callable[[int], object] = lambda steps: None,
) -> Runs:  # fmt: skip
    """pairs [S, N, 2]: mini-batches of 20, reshuffled every epoch; the same order for every lambda."""
    S, N, _ = pairs.shape
    L = len(lambdas)
    epochs = epochs or method.epochs
    trainer = _Trainer(method, world, lambdas.repeat_interleave(S), BATCH)
    random = torch.Generator().manual_seed(1)
    every, kept, at = max(1, epochs // records), [trainer.policy()], [0]
    seeds = torch.arange(S)[:, None]
    for epoch in range(1, epochs + 1):
        order = torch.rand(S, N, generator=random).argsort(1)
        shuffled = pairs[seeds, order].repeat(L, 1, 1)  # [R, N, 2]
        for begin in range(0, N - BATCH + 1, BATCH):
            trainer.step(shuffled[:, begin : begin + BATCH], random)
        tick(N // BATCH)
        if epoch % every == 0 or epoch == epochs:
            kept.append(trainer.policy())
            at.append(epoch)
    return Runs(method, lambdas, torch.tensor(at), torch.stack(kept).unflatten(1, (L, S)))


def train_exact(
    method: Method, world: World, lambdas: Tensor, *, steps: int = 8000, lr: float = 0.02,
    tick: Callable[[int], object] = lambda steps: None,
) -> Runs:  # fmt: skip
    """The expectation over p* itself: every ordered pair of every prompt, weighted; the rate falls to 0."""
    (X, Y), L = world.best.shape, len(lambdas)
    ordered = torch.tensor([(a, b) for a in range(Y) for b in range(Y) if a != b])  # [C, 2]
    pairs = (ordered + Y * torch.arange(X)[:, None, None]).flatten(0, 1)  # [X C, 2]
    weights = world.preferences()[:, ordered[:, 0], ordered[:, 1]].flatten()
    trainer = _Trainer(replace(method, lr=lr), world, lambdas, len(pairs), weights / weights.mean())
    schedule = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: max(0.0, 1.0 - step / steps))
    for _ in range(steps):
        trainer.step(pairs.expand(L, -1, -1), None)
        schedule.step()
        tick(1)
    return Runs(method, lambdas, torch.tensor([steps]), trainer.policy()[None, :, None])


class _Trainer:
    """Adam on theta [R, X, Y], from the reference; one value of the parameter for each run."""

    def __init__(self, method: Method, world: World, values: Tensor, B: int, weights: Tensor | None = None) -> None:
        R, (self.X, self.Y) = len(values), world.best.shape
        self.method, self.weights = method, weights
        self.reference = world.reference.expand(R, -1, -1)
        self.theta = torch.nn.Parameter(self.reference.log().clone())
        self.optimizer = torch.optim.Adam([self.theta], lr=method.lr)
        self.objective = method.over(values.repeat_interleave(B))
        scale = method.over(values).needs.anchor_scale
        self.pull = None if scale is None else scale[:, None, None] * self.reference / self.X  # type: ignore[index]
        self.ones = torch.ones(2, R * B, dtype=torch.float64)
        self.flat_reference = self.reference.log().flatten(1)

    def policy(self) -> Tensor:
        return torch.softmax(self.theta.detach(), -1)

    def step(self, pairs: Tensor, random: torch.Generator | None) -> None:
        """pairs [R, B, 2]"""
        R, B, _ = pairs.shape
        with torch.no_grad():
            logp = torch.log_softmax(self.theta, -1)
            at = pairs.transpose(1, 2).flatten(1)  # [R, 2 B]
            c = self._coefficients(logp.flatten(1).gather(1, at), self.flat_reference.gather(1, at))  # [R, 2 B]
            on_logp = torch.zeros(R, self.X * self.Y, dtype=torch.float64).scatter_add_(1, at, c / B)
            on_logp = on_logp.view(R, self.X, self.Y) + self._unsupervised(random)
            gradient = on_logp - logp.exp() * on_logp.sum(-1, keepdim=True)
            norm = gradient.flatten(1).norm(dim=1)[:, None, None]
            self.theta.grad = gradient * (CLIP / norm.clamp(min=CLIP))
        self.optimizer.step()

    def _coefficients(self, policy: Tensor, reference: Tensor) -> Tensor:
        """[R, 2 B] -> d loss / d logp, undivided"""
        R = policy.shape[0]

        def roles(x: Tensor) -> Tensor:
            return x.view(R, 2, -1).transpose(0, 1).reshape(2, -1)

        seen = SequenceLogprobs(roles(policy), self.ones, roles(reference), {}, Counts(1, 1, 1), self.ones[0].bool())
        c = self.objective(seen).coefficients.view(2, R, -1)
        if self.weights is not None:
            c = c * self.weights
        return c.transpose(0, 1).reshape(R, -1)

    def _unsupervised(self, random: torch.Generator | None) -> Tensor | float:
        """d loss / d logp of the term on samples of the reference: exact, or by as many samples as there are pairs."""
        if self.pull is None:
            return 0.0
        if not self.method.sampled:
            return self.pull
        flat = self.reference.flatten(0, 1)
        drawn = torch.multinomial(flat, BATCH, replacement=True, generator=random)
        counts = torch.zeros_like(flat).scatter_add_(1, drawn, torch.full_like(drawn, 1.0 / BATCH, dtype=flat.dtype))
        return self.pull * (counts / flat).view_as(self.pull)


def fits(world: World, pairs: Tensor, score: str = "log") -> Tensor:
    """[S, X, Y]: the Bradley-Terry fit of each seed's own pairs, what EXPO must reach as lambda falls."""
    X, Y = world.best.shape

    def of_prompt(one: Tensor, x: int) -> Tensor:
        return bradley_terry_fit(one[one[:, 0] // Y == x] - Y * x, score)

    return torch.stack([torch.stack([of_prompt(one, x) for x in range(X)]) for one in pairs])


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).abs().sum(-1) / 2
