"""A language small enough to list: a few prompts, and as responses all words of a few letters.

So the policy's whole distribution, the Bradley-Terry optimum of a reward, and their distances are exact. X prompts,
Y responses, T tokens of the longest prompt and response together.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from toy.tokenizer import tokenizer


@dataclass(frozen=True)
class Language:
    letters: str = "abcd"
    longest: int = 4
    prompts: tuple[str, ...] = ("0", "1", "2", "3")

    @cached_property
    def responses(self) -> tuple[str, ...]:
        """Every word of 1 to `longest` letters."""
        return tuple(
            "".join(word) for n in range(1, self.longest + 1) for word in itertools.product(self.letters, repeat=n)
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tokenizer(self.letters)

    def _ids(self, chat: list[dict[str, str]], opening: bool = False) -> list[int]:
        made: Any = self.tokenizer.apply_chat_template(chat, return_dict=True, add_generation_prompt=opening)
        return made["input_ids"]

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """-> ids [X, Y, T], padded; labels [X, Y, T - 1], what all but the last predict, -100 outside the response."""
        rows, starts = [], []
        for prompt in self.prompts:
            for response in self.responses:
                chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
                rows.append(self._ids(chat))
                opening = self._ids(chat[:1], opening=True)
                assert rows[-1][: len(opening)] == opening, "a response follows its prompt's tokens"
                starts.append(len(opening))
        T = max(map(len, rows))
        ids = torch.full((len(rows), T), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), T), -100)
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, start : len(row)] = torch.tensor(row[start:])
        shape = (len(self.prompts), len(self.responses), -1)
        return ids.view(shape), labels[:, 1:].reshape(shape)

    def features(self, seed: int) -> Tensor:
        """[X, Y] a random score of letters and of pairs of neighbours, for each prompt; of about unit variance."""
        random = torch.Generator().manual_seed(seed)
        A = len(self.letters)
        single = torch.randn(len(self.prompts), A, generator=random, dtype=torch.float64)
        double = torch.randn(len(self.prompts), A, A, generator=random, dtype=torch.float64)
        score = torch.zeros(len(self.prompts), len(self.responses), dtype=torch.float64)
        for y, word in enumerate(self.responses):
            at = [self.letters.index(letter) for letter in word]
            score[:, y] = single[:, at].sum(1) + sum(double[:, a, b] for a, b in itertools.pairwise(at))
        return score / score.std()
