"""python -m evaluation.diversity responses.jsonl [more files]: how different a model's responses to one prompt are.

Several files (one a temperature, or a model) go into one table, over the prompts that all of them have, with the same
number of tokens and of responses for each. Intervals are 95 %, by a bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tqdm import tqdm

from evaluation import responses as files
from evaluation.diversity_entropy import Scorer
from evaluation.diversity_measures import DRAWS, ORDERS, distinct, self_bleu
from evaluation.diversity_report import Comparison, PromptDiversity, Row, estimate, write
from evaluation.responses import Response

BLEU_TOKENIZERS = ("13a", "intl", "char", "zh", "none")


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
    paired: frozenset[str]  # the prompts that have two or more in every file


class Entropies(NamedTuple):
    means: dict[str, tuple[float, float]]  # prompt: over its responses, entropy and surprisal
    otherwise: int  # responses that are other tokens than were sampled


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        comparison = compare(args)
        print(comparison.markdown())
        if args.out is not None:
            print("\n" + "\n".join(str(path) for path in write(comparison, args.out)))
    except (ValueError, OSError) as error:
        print(f"evaluation.diversity: {error}", file=sys.stderr)
        return 2
    return 0


def compare(args: argparse.Namespace) -> Comparison:
    samples = [read_sample(path, label) for path, label in zip(args.files, labels(args.files), strict=True)]
    scorers = _scorers(args.model, len(samples), args.chat_template)
    tokens = Tokens(scorers[0] if args.tokens == "model" else None)
    fixed = settle(samples, tokens, args.budget)
    rows, otherwise = [], {}
    of_files: Sequence[Scorer | None] = scorers or [None] * len(samples)
    for sample, scorer in zip(samples, of_files, strict=True):
        entropies = _entropies(sample, fixed, scorer, args.batch_tokens)
        found = measure(sample, fixed, tokens, entropies, args)
        said = [sample.prompts[prompt] for prompt in fixed.prompts]
        counts = tuple(map(len, said))
        words = sum(len(response.response.split()) for own in said for response in own) / sum(counts)
        means = estimate(found, args.seed)
        rows.append(Row(sample.label, sample.model, sample.temperature, counts, words, tuple(found), means))
        otherwise[sample.label] = entropies.otherwise
    return Comparison(tuple(rows), tuple(_notes(samples, fixed, tokens, args) + _entropy_notes(scorers, otherwise)))


def read_sample(path: Path, label: str) -> Sample:
    prompts: dict[str, list[Response]] = {}
    read = files.read(path)
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


def labels(paths: Sequence[Path]) -> list[str]:
    """File names without endings, or whole paths where two files have one name."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


class Tokens:
    """A response -> what distinct-n counts: words between whitespace, or tokens of a model's tokenizer."""

    def __init__(self, scorer: Scorer | None) -> None:
        self._scorer = scorer
        self.name = "words" if scorer is None else f"tokens of {scorer.path}"

    def __call__(self, response: Response) -> Sequence[str | int]:
        if self._scorer is None:
            return response.response.split()
        made = self._scorer.tokenizer(response.response, add_special_tokens=False, verbose=False)
        return list(made["input_ids"])


def settle(samples: Sequence[Sample], tokens: Tokens, budget: int | None) -> Fixed:
    """budget None: as many tokens as the prompt with the fewest has in any file."""
    prompts = tuple(sorted(set.intersection(*(set(sample.prompts) for sample in samples))))
    if not prompts:
        raise ValueError("want a prompt with a response that is not blank in every file, got none")
    for prompt in prompts:
        _check_same(prompt, [response for sample in samples for response in sample.prompts[prompt]])
    least = {
        prompt: min(sum(len(tokens(r)) for r in sample.prompts[prompt]) for sample in samples) for prompt in prompts
    }
    size = min(least.values()) if budget is None else budget
    enough = frozenset(prompt for prompt in prompts if least[prompt] >= size)
    if size < 1 or not enough:
        raise ValueError(f"--budget: want 1 to {max(least.values())} {tokens.name}, the most of any prompt, got {size}")
    counts = {prompt: min(len(sample.prompts[prompt]) for sample in samples) for prompt in prompts}
    paired = frozenset(prompt for prompt, count in counts.items() if count > 1)
    return Fixed(prompts, size, enough, min((counts[prompt] for prompt in paired), default=0), paired)


def _check_same(prompt_id: str, said: Sequence[Response]) -> None:
    other = next((response.prompt for response in said if response.prompt != said[0].prompt), None)
    if other is not None:
        raise ValueError(f"prompt {prompt_id}: want one prompt of this id, got {said[0].prompt!r} and {other!r}")


def measure(
    sample: Sample, fixed: Fixed, tokens: Tokens, entropies: Entropies, args: argparse.Namespace
) -> list[PromptDiversity]:
    """A file's prompts, in the order of fixed.prompts."""
    found = []
    for prompt in tqdm(fixed.prompts, desc=sample.label, disable=None):
        said = sample.prompts[prompt]
        seed = f"{args.seed} {prompt}"
        bleu = None
        if prompt in fixed.paired:
            bleu = self_bleu([r.response for r in _some(said, fixed.siblings, seed)], args.bleu_tokenize)
        shares: tuple[float | None, ...] = (None,) * len(ORDERS)
        if prompt in fixed.drawn_from:
            drawn = distinct([tokens(r) for r in said], fixed.budget, seed=seed)
            shares = tuple(None if math.isnan(share) else share for share in drawn)
        entropy, surprisal = entropies.means.get(prompt, (None, None))
        found.append(PromptDiversity(prompt, entropy, surprisal, bleu, shares))
    return found


def _some(responses: Sequence[Response], count: int, seed: str) -> list[Response]:
    """count of them, drawn at random."""
    return [responses[i] for i in sorted(Random(seed).sample(range(len(responses)), count))]


def _entropies(sample: Sample, fixed: Fixed, scorer: Scorer | None, batch_tokens: int) -> Entropies:
    """Empty without a model."""
    if scorer is None:
        return Entropies({}, 0)
    scores = scorer([response for prompt in fixed.prompts for response in sample.prompts[prompt]], batch_tokens)
    scored = iter(scores.each)
    means = {}
    for prompt in fixed.prompts:
        own = [next(scored) for _ in sample.prompts[prompt]]
        entropy, surprisal = math.fsum(s.entropy for s in own), math.fsum(s.surprisal for s in own)
        means[prompt] = entropy / len(own), surprisal / len(own)
    return Entropies(means, scores.otherwise)


def _scorers(models: Sequence[str], count: int, chat_template: str | None) -> list[Scorer]:
    """One a file; none without models."""
    if len(models) not in (0, 1, count):
        raise ValueError(f"--model: want one for all files or one for each of the {count}, got {len(models)}")
    loaded = {model: Scorer(model, chat_template=chat_template) for model in dict.fromkeys(models)}
    return [loaded[model] for model in (models if len(models) == count else [*models] * count)]


def _notes(samples: Sequence[Sample], fixed: Fixed, tokens: Tokens, args: argparse.Namespace) -> list[str]:
    """What the numbers stand on, and whatever was left out, with the cause."""
    notes = [f"{len(fixed.prompts)} prompts, those with a response in every file."]
    for sample in samples:
        lost = len(sample.prompts) - len(fixed.prompts)
        if lost or sample.blank:
            why = f"{lost} prompts without a response in another file, {sample.blank} blank responses"
            notes.append(f"{sample.label}: left out {why}.")
    short, single = len(fixed.prompts) - len(fixed.drawn_from), len(fixed.prompts) - len(fixed.paired)
    notes.append(
        f"distinct-n: {fixed.budget} {tokens.name} a prompt, the same for every file, drawn {DRAWS} times (seed "
        f"{args.seed})" + (f"; left out {short} prompts that have fewer in some file." if short else ".")
    )
    notes.append(_bleu_note(fixed, single, args.bleu_tokenize))
    if len({sample.temperature for sample in samples}) > 1:
        notes.append("The files differ in temperature, which moves every measure: compare models at equal ones.")
    return notes


def _entropy_notes(scorers: Sequence[Scorer], otherwise: Mapping[str, int]) -> list[str]:
    if not scorers:
        return ["entropy, surprisal: not measured, want --model."]
    names = ", ".join(dict.fromkeys(scorer.path for scorer in scorers))
    return [
        f"entropy, surprisal: nats a token of the response, at temperature 1, by {names}.",
        *(
            f"{label}: the text of {count} responses makes another number of tokens than were sampled."
            for label, count in otherwise.items()
            if count
        ),
    ]


def _bleu_note(fixed: Fixed, single: int, tokenize: str) -> str:
    if not fixed.siblings:
        return "self-BLEU: refused, it compares responses to one prompt, and no prompt has two in every file."
    told = f"self-BLEU: sacrebleu's sentence BLEU, {tokenize}; each of {fixed.siblings} responses against the others"
    return told + (f"; left out {single} prompts that have one response in some file." if single else ".")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m evaluation.diversity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", help="JSONL of responses, several to a prompt")
    add("--model", action="append", default=[], help="whose entropy: a folder; once, or once a file, in their order")
    add("--chat-template", help="a file or a template, in place of the tokenizer's")
    add("--budget", type=int, help="tokens of a prompt for distinct-n (default: the fewest that a prompt has)")
    add("--tokens", choices=("words", "model"), default="words", help="of distinct-n; model: the first --model's")
    add("--bleu-tokenize", choices=BLEU_TOKENIZERS, default="13a", help="sacrebleu's tokenizer")
    add("--batch-tokens", type=int, default=8192, help="padded tokens of a forward")
    add("--seed", type=int, default=0, help="of what is drawn, and of the bootstrap")
    add("--out", type=Path, help="folder for diversity.md, .png and .jsonl (a line a prompt and file)")
    args = parser.parse_args(argv)
    if args.tokens == "model" and not args.model:
        parser.error("--tokens model: want --model, got none")
    if args.batch_tokens < 1:
        parser.error(f"--batch-tokens: want at least 1, got {args.batch_tokens}")
    return args


if __name__ == "__main__":
    sys.exit(main())
