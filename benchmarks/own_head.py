"""A workload of one's own model: a safetensors file of hidden states h [N, D], the head w [V, D] and next tokens y [N].

`python -m experiments.text_lm` writes one. An entropy that is asked for is reached by a common factor on h, the
temperature's inverse; without one the rows are as they come.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.cases import HeadCase, observed

ROWS = 256  # that the factor is found with
STRONGEST = 64.0  # factor


def read_head(path: Path) -> HeadCase:
    parts = load_file(path)
    if set(parts) != {"h", "w", "y"}:
        raise ValueError(f"read_head: want h, w and y in {path}, got {', '.join(sorted(parts)) or 'nothing'}")
    h, w, y = parts["h"], parts["w"], parts["y"]
    fits = h.ndim == w.ndim == 2 and h.shape[1] == w.shape[1] and y.shape == h.shape[:1] and len(y)
    if not fits or y.is_floating_point() or int(y.min()) < 0 or int(y.max()) >= len(w):
        shapes = ", ".join(f"{name} {list(x.shape)} {x.dtype}" for name, x in sorted(parts.items()))
        raise ValueError(f"read_head: want h [N, D], w [V, D] and y [N] in 0 to V - 1 in {path}, got {shapes}")
    return HeadCase(h, w, y.long())


def own_case(
    whole: HeadCase, N: int, entropy: float | None, dtype: torch.dtype, device: torch.device | str
) -> HeadCase:
    """The first N rows, at that entropy."""
    if len(whole.y) < N:
        raise ValueError(f"own_case: want at most the file's {len(whole.y)} rows, got {N}")
    case = HeadCase(whole.h[:N].to(device), whole.w.to(device), whole.y[:N].to(device))
    h = case.h.float()
    if entropy is not None:
        every = max(1, N // ROWS)
        h = h * factor(HeadCase(h[::every], case.w.float(), case.y[::every]), entropy)
    return HeadCase(h.to(dtype), case.w.to(dtype), case.y)


def factor(case: HeadCase, entropy: float) -> float:
    """On the hidden states, for a mean entropy of so many nats: it falls as the factor grows."""

    def mean(scale: float) -> float:
        return float(observed(case._replace(h=case.h * scale)).entropy.mean())

    low, high = 0.0, STRONGEST
    if not mean(high) <= entropy <= mean(low):
        raise ValueError(f"own_case: want an entropy of {mean(high):.2f} to {mean(low):.2f} nats here, got {entropy}")
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > entropy else (low, middle)
    return high
