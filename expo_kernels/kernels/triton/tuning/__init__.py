"""One table of tile shapes an architecture. Nothing is tuned at run time, so all ranks run the same kernels.

The rows stand in cards.py, which `python -m benchmarks.gpu.tune` writes on a card; what they hold is explained
in types.py. A row says itself what of it was measured.
"""

from __future__ import annotations

import functools
import warnings

import torch

from expo_kernels.kernels.triton.tuning.cards import ROWS
from expo_kernels.kernels.triton.tuning.types import Card, Tiles, Walk

MIN_COLUMNS = 128  # no tile of the head is narrower; the account of the workspace counts on it
CARDS = {row.name: row for row in ROWS}
_FEW = Tiles(32, 256, 64, 4, 1, group=2)
INTERPRETER = Card("interpreter", False, _FEW, _FEW, None, _FEW, None, _FEW, Walk(32, 256, 4, 2), 1 << 30)


def card_for(device: torch.device) -> Card:
    """The device's row, or the nearest one's."""
    if device.type == "cpu":
        return INTERPRETER
    if torch.version.hip is not None:
        own, taken = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0], "gfx942"
    else:
        major, minor = torch.cuda.get_device_capability(device)
        own, taken = f"sm_{major}{minor}", nearest(major, minor)
    if own != taken:
        _say(own, taken)
    return CARDS[taken]


@functools.cache
def _say(own: str, taken: str) -> None:
    """Once a process."""
    warnings.warn(
        f"expo_kernels: no tiles are known for {own}, those of {taken} are taken "
        "(expo_kernels/kernels/triton/tuning/cards.py)", stacklevel=2,
    )  # fmt: skip


def nearest(major: int, minor: int) -> str:
    """The newest row that is not newer than the device, of the same generation where there is one."""
    if major >= 12:  # consumer Blackwell: the shared memory and the instructions of sm_86
        return "sm_86"
    if major >= 10:
        return "sm_100"
    if major == 9:
        return "sm_90"
    return "sm_80" if (major, minor) == (8, 0) else "sm_86"
