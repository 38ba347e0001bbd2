"""What is watched: sums on the device, and one packed all-reduce when they are read.

Names are TRL's where the meaning is. A reward is what the objective calls one (for EXPO, which has no implicit reward,
the policy's own reduced log-prob); a margin is the objective's. `kl` is the mean of reference - policy log-probs of the
responses: of KL(pi_ref || pi) where the responses are samples of the reference. `sparsity/...` is what the head's
gradient left out (expo_kernels.SparsityReport).
"""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor

from expo_kernels.types import LossOutput
from train.batches import MicroBatch
from train.launch import rank, world
from train.stage import Stage

QUANTILES = (("q05", 0.05), ("q50", 0.5), ("q95", 0.95))
SATURATED = 0.01  # a group whose largest coefficient is under this share of the window's largest


def metric_names(stage: Stage) -> tuple[str, ...]:
    """What an evaluation of the stage has."""
    sides = ("all",) if stage.name in ("sft", "lists") else ("chosen", "rejected")
    names = ["loss", *(f"{kind}/{side}" for kind in ("logps", "rewards") for side in sides)]
    if stage.name in ("preference", "unpaired"):
        names.append("rewards/margins")
    if stage.name == "preference":
        names += ["rewards/accuracies", *(f"margins/{name}" for name, _ in QUANTILES)]
    return (*names, *(["kl"] if stage.reference else []), "entropy", "mean_token_accuracy")


class Meter:
    """Adds up micro-batches; `read` makes the means of all ranks' and starts anew."""

    def __init__(self, stage: str, capacity: int, device: torch.device) -> None:
        """capacity: groups that a rank adds between two reads, at most."""
        self.stage, self.capacity, self.device = stage, capacity, device
        self.tokens = 0  # all ranks', ever
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.margins: list[Tensor] = []
        self.steepness: list[Tensor] = []
        self.new_tokens, self.since = 0, time.perf_counter()

    @torch.no_grad()
    def add(self, micro: MicroBatch, out: LossOutput, reference: Tensor | None) -> None:
        host = micro.batch.host
        K, P = host.roles, host.groups
        active = (out.lengths[: K * P].view(K, P) > 0).all(0)  # [P]
        seq, rewards = out.seq_logps[: K * P].view(K, P), out.rewards[: K * P].view(K, P)
        self._by_stage(seq, rewards, active, micro)
        if reference is not None:
            self._mean("kl", reference[: K * P].view(K, P) - seq, active.expand(K, P))
        if out.terms.margin is not None:
            self.margins.append(torch.where(active, out.terms.margin, torch.nan))
        steepest = out.terms.coefficients[: K * P].view(K, P).abs().amax(0)
        self.steepness.append(torch.where(active, steepest, torch.nan))
        self._token_means(out)
        self._sparsity(out)
        self.new_tokens += micro.tokens + (micro.others.tokens if micro.others else 0)

    def _by_stage(self, seq: Tensor, rewards: Tensor, active: Tensor, micro: MicroBatch) -> None:
        names, rows, masks = ["chosen", "rejected"], [0, 1], [active, active]
        if self.stage == "preference":
            self._mean("rewards/margins", rewards[0] - rewards[1], active)
            self._mean("rewards/accuracies", (rewards[0] > rewards[1]).to(rewards.dtype), active)
        elif self.stage == "unpaired":
            desirable = micro.columns["desirable"] > 0
            rows, masks = [0, 0], [active & desirable, active & ~desirable]
        else:
            names, rows, masks = ["all"], [0], [active]
            seq, rewards = seq.mean(0, keepdim=True), rewards.mean(0, keepdim=True)
        for name, row, mask in zip(names, rows, masks, strict=True):
            self._mean(f"logps/{name}", seq[row], mask)
            self._mean(f"rewards/{name}", rewards[row], mask)

    def _token_means(self, out: LossOutput) -> None:
        for name, key in (("entropy", "entropy"), ("mean_token_accuracy", "is_argmax")):
            if key in out.stats:
                values = out.stats[key].double()
                self._mean(name, values, torch.ones_like(values, dtype=torch.bool))

    def _sparsity(self, out: LossOutput) -> None:
        """Means over micro-batches."""
        for name, value in (out.sparsity._asdict() if out.sparsity is not None else {}).items():
            self._mean(f"sparsity/{name}", value, torch.ones_like(value, dtype=torch.bool))

    def _mean(self, name: str, values: Tensor, mask: Tensor) -> None:
        total, count = torch.where(mask, values.double(), 0.0).sum(), mask.sum().double()
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts[name] + count if name in self.counts else count

    def read(self) -> dict[str, float]:
        """Every rank calls it at the same time, after the same number of micro-batches."""
        names = sorted(self.sums)
        ranks = world()
        slots = torch.zeros(2, ranks, self.capacity, dtype=torch.float64, device=self.device)
        for kind, values in enumerate((self.margins, self.steepness)):
            mine = torch.cat(values) if values else slots.new_zeros(0)
            slots[kind, rank()] = torch.nan
            slots[kind, rank(), : len(mine)] = mine
        numbers = [*(self.sums[name] for name in names), *(self.counts[name] for name in names)]
        tokens = torch.tensor([float(self.new_tokens)], dtype=torch.float64, device=self.device)
        packed = torch.cat([torch.stack(numbers) if numbers else tokens[:0], tokens, slots.flatten()])
        if dist.is_initialized() and ranks > 1:
            dist.all_reduce(packed)
        found = packed.cpu()
        n = len(names)
        means = found[:n] / found[n : 2 * n].clamp(min=1)
        out = {name: float(mean) for name, mean in zip(names, means, strict=True)}
        margins, steepness = found[2 * n + 1 :].view(2, -1)
        if self.stage == "unpaired":
            out["rewards/margins"] = out["rewards/chosen"] - out["rewards/rejected"]
        out.update(_quantiles(margins))
        out.update(_saturated(steepness))
        tokens_now = int(found[2 * n])
        self.tokens += tokens_now
        out["num_tokens"] = float(self.tokens)
        out["tokens_per_second"] = tokens_now / max(time.perf_counter() - self.since, 1e-9)
        self._reset()
        return {sys.intern(name): value for name, value in out.items()}  # every line of a run's log keeps them


def _quantiles(margins: Tensor) -> dict[str, float]:
    known = margins[~margins.isnan()]
    if not len(known):
        return {}
    return {f"margins/{name}": float(known.quantile(q)) for name, q in QUANTILES}


def _saturated(steepness: Tensor) -> dict[str, float]:
    known = steepness[~steepness.isnan()]
    if not len(known) or float(known.max()) == 0.0:
        return {}
    return {"saturated": float((known < SATURATED * known.max()).double().mean())}
