"""Section 5 of the paper: interpolation (figures 3, 4, 8) and preservation (figure 5), trained once and handed out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.tabular import (
    BATCH,
    INTERPOLATION,
    METHODS,
    PRESERVATION,
    Method,
    Runs,
    World,
    draw_pairs,
    fits,
    train_exact,
    train_sampled,
)  # fmt: skip

SMALL, LARGE = 1e-5, 100.0
EXACT_STEPS = 8000


class Settings(NamedTuple):
    """What a shortened run changes; the defaults are the paper's where it says them (docs/experiments.md)."""

    pairs: int = 300  # of the interpolation, each of the three pairs a third
    draws: int = 200  # of each prompt of the preservation
    seeds: int = 20
    preservation_seeds: int = 5
    sweep: int = 15  # lambdas of figure 4
    preservation_sweep: int = 11  # lambdas of figure 5, log lambda from -5 to 5
    epochs: float = 1.0  # times the methods' own
    methods: tuple[Method, ...] = METHODS


# f-DPO is all but there after a third of its 3000 epochs
SHORT = tuple(replace(method, epochs=min(method.epochs, 1000)) for method in METHODS if not method.sampled)
QUICK = Settings(seeds=6, preservation_seeds=2, sweep=3, preservation_sweep=5, epochs=0.6, methods=SHORT)


class Interpolation(NamedTuple):
    world: World
    fits: dict[str, Tensor]  # score -> [S, X, Y]
    runs: list[Runs]


class Preservation(NamedTuple):
    world: World
    fits: dict[str, Tensor]
    sampled: list[Runs]
    exact: list[Runs]


@functools.cache
def interpolation(settings: Settings, ends_only: bool) -> Interpolation:
    """lambda from 1e-5 to 100 (1 where that is the highest); ends_only: these two alone."""
    pairs = draw_pairs(INTERPOLATION, settings.pairs, settings.seeds)
    exponents = torch.linspace(-5, 2, 2 if ends_only else settings.sweep, dtype=torch.float64)
    runs = [_sampled(method, INTERPOLATION, pairs, 10.0**exponents, settings) for method in settings.methods]
    return Interpolation(INTERPOLATION, _fits(INTERPOLATION, pairs), runs)


@functools.cache
def preservation(settings: Settings) -> Preservation:
    pairs = draw_pairs(PRESERVATION, settings.draws, settings.preservation_seeds)
    lambdas = torch.linspace(-5, 5, settings.preservation_sweep, dtype=torch.float64).exp()
    methods = [method for method in settings.methods if not method.sampled]
    sampled = [_sampled(method, PRESERVATION, pairs, lambdas, settings) for method in methods]
    steps = round(EXACT_STEPS * settings.epochs)
    exact = []
    for method in methods:
        with _bar(f"{method.title}, exact preferences", steps) as tick:
            exact.append(train_exact(method, PRESERVATION, _allowed(method, lambdas), steps=steps, tick=tick))
    return Preservation(PRESERVATION, _fits(PRESERVATION, pairs), sampled, exact)


def _sampled(method: Method, world: World, pairs: Tensor, lambdas: Tensor, settings: Settings) -> Runs:
    epochs = round(method.epochs * settings.epochs)
    with _bar(method.title, epochs * (pairs.shape[1] // BATCH)) as tick:
        return train_sampled(method, world, pairs, _allowed(method, lambdas), epochs=epochs, tick=tick)


def _allowed(method: Method, lambdas: Tensor) -> Tensor:
    """Those up to the method's highest, and that one itself where some lie beyond."""
    if float(lambdas.max()) <= method.highest:
        return lambdas
    return torch.cat([lambdas[lambdas < method.highest], lambdas.new_tensor([method.highest])])


def _fits(world: World, pairs: Tensor) -> dict[str, Tensor]:
    return {score: fits(world, pairs, score) for score in ("log", "brier")}


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar, as a function of the steps just made."""
    with tqdm(desc=f"{title:28}", total=total, unit="step", leave=False, disable=None) as bar:
        yield bar.update
