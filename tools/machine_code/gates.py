"""What the machine code must be: no spills, shared memory within the card's, as many programs a multiprocessor as are
meant (occupancy.py), and in a product's main loop tensor cores, asynchronous copies and little else."""

from __future__ import annotations

from typing import NamedTuple

from expo_kernels.kernels.triton.tuning import CARDS, Card
from tools.machine_code.compiling import compiling_for
from tools.machine_code.launches import Launch, launches
from tools.machine_code.occupancy import intended
from tools.machine_code.reading import Numbers, read

# Of the instructions of a main loop the matrix instructions must be so many at least, in the head's kernels and in our
# own product: what is compiled today, less up to a tenth. One HMMA multiplies 16x8x16, one HGMMA 64x256x16 and one
# UTCHMMA 128x128x16, so a tile needs fewer of the later ones. Small tiles, for odd sizes and fp32, have no floor.
HEADS, PRODUCTS = ("head", "capped", "persistent"), ("product", "product_persistent")
FLOORS = {
    "sm_80": (0.38, 0.28), "sm_86": (0.38, 0.28), "sm_90": (0.040, 0.026), "sm_100": (0.037, 0.022),
    "gfx942": (0.26, 0.14),
}  # fmt: skip


class Row(NamedTuple):
    card: str
    kernel: str
    variant: str
    tiles: str
    numbers: Numbers
    broken: tuple[str, ...]  # the gates it does not pass


def check_named(name: str, *, loops: bool) -> list[Row]:
    return check(CARDS[name], loops=loops)


def check(card: Card, *, quick: bool = False, loops: bool = False) -> list[Row]:
    """Compiles every launch for the card (quick: the representative ones; loops: those of 16-bit products that a step
    is made of) and holds it against the gates."""
    rows = []
    with compiling_for(card.name) as found:
        for launch in launches(card):
            if (quick and not launch.quick) or (loops and not (launch.main_loop and launch.usual)):
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
    wanted, held = wanted_programs(launch, card), numbers.programs(card.name)
    if held < wanted:
        found.append(f"{held} programs a multiprocessor of {wanted}")
    if launch.main_loop and not numbers.main_loop:
        found.append("no tensor-core instruction")
    elif launch.main_loop:
        found += _broken_loop(numbers, launch, card)
    if launch.main_loop and launch.copies and numbers.async_copies == 0:
        found.append("no asynchronous copy")
    return found


def wanted_programs(launch: Launch, card: Card) -> int:
    return intended(card, launch.field) if launch.field and not launch.rare else 1


def floor_of(launch: Launch, card: Card) -> float:
    heads, products = FLOORS[card.name]
    return heads if launch.field in HEADS else products if launch.field in PRODUCTS else 0.0


def _broken_loop(numbers: Numbers, launch: Launch, card: Card) -> list[str]:
    loop, floor = numbers.loop, floor_of(launch, card)
    if loop is None or not loop.counts["matrix"]:
        return ["no tensor-core instruction in a main loop"]
    found = []
    if loop.share < floor:
        found.append(f"{100 * loop.share:.1f} % of the main loop are matrix instructions, want {100 * floor:.1f} %")
    if launch.copies and numbers.async_copies and not loop.counts["async copy"]:
        found.append("no asynchronous copy in the main loop")
    if loop.counts["local"]:
        found.append("local memory in the main loop")
    return found


def _tiles(options: dict) -> str:
    shape = "x".join(str(options[name]) for name in ("BM", "BN", "BV", "BK", "BD", "BT", "BJ") if name in options)
    return f"{shape}, {options.get('num_warps')} warps"
