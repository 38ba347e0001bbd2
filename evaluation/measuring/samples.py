"""Files of responses to be compared, and what is made the same for all of them: prompts, tokens, siblings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation import files, responses
from evaluation.responses import Response

_LEFT_OUT = 0.05  # of the prompts at most, where neither budget nor siblings are given

TokensOf = Callable[[Response], Sequence[str | int]]


class Sample(NamedTuple):
    """A file."""

    label: str
    model: str
    temperature: float | None
    prompts: dict[str, list[Response]]  # those that are not blank
    blank: int


class Fixed(NamedTuple):
    """The same for every file."""

    prompts: tuple[str, ...]  # that are in all of them
    budget: int  # tokens of a prompt for distinct-n
    drawn_from: frozenset[str]  # the prompts that have so many in every file
    siblings: int  # responses of a prompt for self-BLEU; 0 where none has two
    paired: frozenset[str]  # the prompts that have so many in every file


def read_samples(paths: Sequence[Path]) -> list[Sample]:
    numbered = [f"{path.stem} {i}" for i, path in enumerate(paths, 1)]  # one file twice, under two models
    return [_sample(path, label) for path, label in zip(paths, files.names_of(paths) or numbered, strict=True)]


def _sample(path: Path, label: str) -> Sample:
    prompts: dict[str, list[Response]] = {}
    read = responses.read(path)
    for response in read:
        if response.response.strip():
            prompts.setdefault(response.prompt_id, []).append(response)
    for said in prompts.values():
        said.sort(key=lambda response: response.sample)  # what is drawn does not depend on the order of lines
    models = sorted({response.model for response in read if response.model})
    blank = len(read) - sum(map(len, prompts.values()))
    return Sample(label, ", ".join(models), _temperature(path, read), prompts, blank)


def _temperature(path: Path, read: Sequence[Response]) -> float | None:
    """None where the file does not say, or names several."""
    found = [response.sampling.get("temperature") for response in read]
    wrong = [value for value in found if value is not None and not isinstance(value, int | float)]
    if wrong:
        raise ValueError(f"{path}: want a temperature in sampling a number, got {wrong[0]!r}")
    return found[0] if all(value == found[0] for value in found) else None


def settle(samples: Sequence[Sample], tokens: TokensOf, budget: int | None, siblings: int | None) -> Fixed:
    """budget, siblings: None for as many as all but a few prompts have in every file."""
    prompts = tuple(sorted(set.intersection(*(set(sample.prompts) for sample in samples))))
    if not prompts:
        raise ValueError("want a prompt with a response that is not blank in every file, got none")
    for prompt in prompts:
        _check_same(prompt, [response for sample in samples for response in sample.prompts[prompt]])
    least = {
        prompt: min(sum(len(tokens(r)) for r in sample.prompts[prompt]) for sample in samples) for prompt in prompts
    }
    counts = {prompt: min(len(sample.prompts[prompt]) for sample in samples) for prompt in prompts}
    size = low(least.values()) if budget is None else budget
    enough = frozenset(prompt for prompt in prompts if least[prompt] >= size)
    if size < 1 or not enough:
        raise ValueError(f"--budget: want 1 to {max(least.values())} tokens, the most of any prompt, got {size}")
    several = [count for count in counts.values() if count > 1]
    if siblings is None:
        siblings = low(several) if several else 0
    elif not 2 <= siblings <= max(counts.values()):
        raise ValueError(f"--siblings: want 2 to {max(counts.values())}, the most of any prompt, got {siblings}")
    paired = frozenset(prompt for prompt in prompts if 2 <= siblings <= counts[prompt])
    return Fixed(prompts, size, enough, siblings, paired)


def low(values: Iterable[int]) -> int:
    """The 5th percentile: of the least a single short prompt would decide, and everything else be thrown away."""
    ordered = sorted(values)
    return ordered[int(_LEFT_OUT * len(ordered))]


def _check_same(prompt_id: str, said: Sequence[Response]) -> None:
    other = next((response.prompt for response in said if response.prompt != said[0].prompt), None)
    if other is not None:
        raise ValueError(f"prompt {prompt_id}: want one prompt of this id, got {said[0].prompt!r} and {other!r}")
