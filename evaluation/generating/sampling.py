"""How responses are drawn: the settings, the paper's named ones, and the random numbers of each response."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    samples: int = 1  # a prompt
    temperature: float = 1.0  # 0: the likeliest token
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    max_tokens: int = 256
    repetition_penalty: float = 1.0  # of tokens that the prompt or the response has already

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("top_k", 0), ("max_tokens", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: want an integer >= {least}, got {value!r}")
        for name in ("temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name}: want a finite number, got {value!r}")
        if self.temperature < 0:
            raise ValueError(f"temperature: want >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: want more than 0 and at most 1, got {self.top_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty: want > 0, got {self.repetition_penalty}")
        if self.greedy and self.samples > 1:
            raise ValueError(f"samples: want 1 at temperature 0, where all are the same, got {self.samples}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def changed(self) -> tuple[str, ...]:
        """What makes the responses no samples of the model's own distribution."""
        own = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
        return tuple(f"{name} {getattr(self, name)}" for name, value in own.items() if getattr(self, name) != value)

    def settings(self) -> dict[str, float | int]:
        """What a response follows from; more samples of a prompt leave the first ones as they are."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "samples"}


# arXiv 2506.07492: win rate on HH, diversity on HH, AlpacaEval 2; ours are the temperature of hh and the tokens of
# diversity, of which it says nothing
PRESETS: Mapping[str, Sampling] = {
    "hh": Sampling(top_k=60, top_p=0.8, max_tokens=256, repetition_penalty=1.1),
    "diversity": Sampling(samples=25, top_p=0.95, max_tokens=256),
    "alpaca": Sampling(temperature=0.9, max_tokens=4096),
}


def row_seed(seed: int, prompt_id: str, sample: int) -> int:
    """63 bits that belong to one response, whatever else is generated with it."""
    digest = hashlib.sha256(json.dumps([seed, prompt_id, sample]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def uniforms(row_seed: int, count: int) -> list[float]:
    """[count] in [0, 1), the same on every machine. Python's generator: torch's uses 32 bits of a seed on a CPU."""
    chance = random.Random(row_seed)
    return [chance.random() for _ in range(count)]
