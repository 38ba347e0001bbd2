"""The numbers of a row that an objective asks for, with the names that data sets give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from train.data.formats import SCORES
from train.data.rows import Row

_LISTS = {"reward": ("rewards", "scores", "gains"), "gain": ("gains", "scores", "rewards")}
_LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


@dataclass(frozen=True)
class Numbers:
    row: Row
    count: int  # responses of the row
    renamed: Mapping[str, str]

    def of_group(self, name: str, pair: Sequence[int]) -> float:
        """A gap that is not a column: score_chosen less score_rejected, or the difference of the pair's scores."""
        column = self.renamed.get(name, name)
        if name != "gap" or column in self.row.values or name in self.renamed:
            return self.row.number(column)
        if "score_chosen" in self.row.values and "score_rejected" in self.row.values:
            return self.row.number("score_chosen") - self.row.number("score_rejected")
        listed = [scores for scores in SCORES if scores in self.row.values]
        if not listed or len(pair) != 2:
            return self.row.number(column)
        scores = self.row.numbers(listed[0], self.count)
        return scores[pair[0]] - scores[pair[1]]

    def of_responses(self, name: str) -> list[float]:
        """-> [count]"""
        names = (self.renamed[name],) if name in self.renamed else (name, *_LISTS.get(name, ()))
        return self.row.numbers(self.row.name(*names), self.count)

    def label(self) -> float:
        name = self._own("desirable", "label", "desirable")
        value = self.row.values[name]
        if str(value).lower() not in _LABELS:
            raise ValueError(f"{self.row.where}: want {name} true or false, 1 or 0, got {value!r}")
        return _LABELS[str(value).lower()]

    def weights(self) -> list[float]:
        """-> [count], 1 without such a column; a single number is every response's."""
        if "weight" not in self.row.values and "weight" not in self.renamed:
            return [1.0] * self.count
        name = self._own("weight", "weight")
        if isinstance(self.row.values[name], list):
            return self.row.numbers(name, self.count)
        return [self.row.number(name)] * self.count

    def _own(self, name: str, *names: str) -> str:
        return self.row.name(*((self.renamed[name],) if name in self.renamed else names))
