"""A rule as the scalars that an operation of torch.library takes, and back."""

from __future__ import annotations

from expo_kernels.sparsity import Certified, Sparsity, Unbiased

Scalars = tuple[str, float, int]  # name, amount, seed


def scalars_of(rule: Sparsity) -> Scalars:
    if isinstance(rule, Unbiased):
        return "unbiased", float(rule.theta), rule.seed
    return rule.budget, float(rule.tau), 0


def rule_of(name: str, amount: float, seed: int) -> Sparsity:
    return Unbiased(theta=amount, seed=seed) if name == "unbiased" else Certified(tau=amount, budget=name)
