"""What sums are divided by: the caller's counts, or the batch's own."""

from __future__ import annotations

from torch import Tensor

from expo_kernels.inputs.checks import on_host
from expo_kernels.layout import default_divisors
from expo_kernels.types import Batch, Counts, Divisors, Needs


def make_divisors(
    where: str, name: str, needs: Needs, batch: Batch, divisor: float | Tensor | Divisors | None
) -> Counts:
    """A single number is the objective's own divisor; where a loss has more than one, each must be named."""
    if isinstance(divisor, Divisors):
        given = divisor
        used = {"tokens" if needs.divisor == "tokens" else "groups"}
        used |= {"groups", "tokens"} if needs.mixes_divisors else set()
        used |= {"anchors"} if batch.host.anchors else set()
        missing = [key for key in Divisors._fields if key in used and getattr(given, key) is None]
        if missing:
            raise ValueError(f"{where}: {name} on this batch divides by {', '.join(missing)} too, got {divisor!r}")
    elif divisor is not None and (batch.host.anchors or needs.mixes_divisors):
        raise ValueError(
            f"{where}: {name} on this batch divides by more than one count; "
            f"want divisor=Divisors(groups=..., anchors=..., tokens=...), got {divisor!r}"
        )
    else:
        given = Divisors(tokens=divisor) if needs.divisor == "tokens" else Divisors(groups=divisor)
    own = default_divisors(batch.host)
    named = zip(Divisors._fields, given, own, strict=True)
    return Counts(*(default if value is None else _one_number(where, key, value) for key, value, default in named))


def _one_number(where: str, name: str, value: float | Tensor) -> float | Tensor:
    """A positive number; on a device it stays there, as a scalar."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{where}: want one number as divisor of {name}, got {tuple(value.shape)}")
        if not on_host(value):
            return value.detach().reshape(())
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < float("inf"):
        raise ValueError(f"{where}: want a positive divisor of {name}, got {value!r}")
    return value
