"""What became of the data: rows, drops and warnings by cause, tokens; and an example as the model will see it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from transformers import PreTrainedTokenizerBase

from train.data.texts import Dropped
from train.data.tokens import Tokens

TRUNCATED = "truncated to max_length"
UNALIGNED = "prompt tokens are not a prefix"


@dataclass
class Report:
    """Counts of an epoch, with its repeats. A row of several anchors makes several examples, a pair as singles two."""

    rows: dict[str, int] = field(default_factory=dict)  # of each source
    kept: int = 0  # examples
    dropped: dict[str, int] = field(default_factory=dict)  # cause: examples, or rows that made none
    warnings: dict[str, int] = field(default_factory=dict)  # cause: examples that were kept
    prompt_tokens: int = 0  # a prompt counts once, whatever follows it
    response_tokens: int = 0  # scored
    longest: int = 0  # prompt and response

    def read(self, source: str) -> None:
        self.rows[source] = self.rows.get(source, 0) + 1

    def drop(self, dropped: Dropped) -> None:
        self.dropped[dropped.cause] = self.dropped.get(dropped.cause, 0) + 1

    def keep(self, tokens: Tokens) -> None:
        self.kept += 1
        self.prompt_tokens += len(tokens.prompt)
        self.response_tokens += sum(map(len, tokens.responses))
        self.longest = max(self.longest, len(tokens.prompt) + max(map(len, tokens.responses)))
        for cause, happened in ((TRUNCATED, tokens.truncated), (UNALIGNED, tokens.unaligned)):
            if happened:
                self.warnings[cause] = self.warnings.get(cause, 0) + 1

    def lines(self) -> list[str]:
        return [
            *(f"read {count} rows of {source}" for source, count in self.rows.items()),
            f"kept {self.kept} examples: {self.prompt_tokens} prompt tokens, {self.response_tokens} scored tokens, "
            f"longest {self.longest}",
            *(f"dropped {count}: {cause}" for cause, count in self.dropped.items()),
            *(f"warning for {count}: {cause}" for cause, count in self.warnings.items()),
        ]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        return cls(**json.loads(text))


def decoded_example(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], responses: Sequence[Sequence[int]]
) -> str:
    """Special tokens and all; what is scored stands in double brackets."""

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    lines = [f"prompt, {len(prompt)} tokens: {text(prompt)}"]
    for k, response in enumerate(responses):
        lines.append(f"response {k + 1} of {len(responses)}, {len(response)} tokens scored: [[{text(response)}]]")
    return "\n".join(lines)
