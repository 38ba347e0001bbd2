"""What the machine code must be: no spills, shared memory within the card's, tensor cores and asynchronous copies."""

from __future__ import annotations

from typing import NamedTuple

from expo_kernels.kernels.triton.tuning import Card
from tools.machine_code.compiling import compiling_for
from tools.machine_code.launches import Launch, launches
from tools.machine_code.reading import Numbers, read


class Row(NamedTuple):
    card: str
    kernel: str
    variant: str
    tiles: str
    numbers: Numbers
    broken: tuple[str, ...]  # the gates it does not pass


def check(card: Card, *, quick: bool) -> list[Row]:
    """Compiles every launch for the card (quick: the representative ones) and holds it against the gates."""
    rows = []
    with compiling_for(card.name) as found:
        for launch in launches(card):
            if quick and not launch.quick:
                continue
            before = len(found)
            launch.call()
            assert len(found) > before, f"{launch.variant}: the launcher launched nothing"
            for compiled in found[before:]:
                numbers = read(card.name, compiled)
                broken = tuple(_broken(numbers, launch, card))
                rows.append(Row(card.name, compiled.name, launch.variant, _tiles(compiled.options), numbers, broken))
    return rows


def _broken(numbers: Numbers, launch: Launch, card: Card) -> list[str]:
    found = []
    if numbers.spilled:
        found.append(f"spills ({numbers.spilled})")
    if numbers.shared_bytes > card.shared_bytes:
        found.append(f"shared memory {numbers.shared_bytes} of {card.shared_bytes}")
    if launch.main_loop and not numbers.main_loop:
        found.append("no tensor-core instruction")
    if launch.main_loop and launch.copies and numbers.async_copies == 0:
        found.append("no asynchronous copy")
    return found


def _tiles(options: dict) -> str:
    shape = "x".join(str(options[name]) for name in ("BN", "BM", "BV", "BK", "BD", "BT", "BJ") if name in options)
    return f"{shape}, {options.get('num_warps')} warps"
