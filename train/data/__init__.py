"""Preference data of any known schema -> tokenised examples on disk, with an account of what was dropped or cut."""

from __future__ import annotations

from train.data.formats import FORMATS, STAGES
from train.data.prepare import Prepared, prepare
from train.data.report import Report, decoded_example
from train.data.sources import Source
from train.data.texts import Dropped
from train.data.tokens import TokenOptions

__all__ = [
    "FORMATS", "STAGES", "Dropped", "Prepared", "Report", "Source", "TokenOptions", "decoded_example", "prepare",
]  # fmt: skip
