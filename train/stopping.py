"""SIGTERM and SIGINT: not the end of a rank, but a wish that all ranks agree on at the end of a step."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """From the first step on. A second signal of the same kind does what it would have done."""

    def __init__(self) -> None:
        self.wished = False
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._wish)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        self.wished = True
        signal.signal(number, self._before[signal.Signals(number)])
