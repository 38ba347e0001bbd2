"""python -m evaluation.diversity responses.jsonl [more files]: how different a model's responses to one prompt are.

Several files (one a temperature, or a model) go into one table, over the prompts that all of them have, with the same
number of tokens and of responses for each. Intervals are 95 %, by a bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tqdm import tqdm

from evaluation import files
from evaluation.generating.prompts import read_template_args
from evaluation.measuring.entropy import Scorer, Scores
from evaluation.measuring.measures import DRAWS, ORDERS, distinct, self_bleu
from evaluation.measuring.samples import Fixed, Sample, read_samples, settle
from evaluation.measuring.table import FILES, PromptDiversity, Row, Table, estimate, write
from evaluation.responses import Response

BLEU_TOKENIZERS = ("13a", "intl", "char", "zh", "none")


class Entropies(NamedTuple):
    means: dict[str, tuple[float, float]]  # prompt: over its responses, entropy and surprisal
    scores: Scores | None  # None without a model


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        if args.out is not None:
            files.check_outputs((args.out / name for name in FILES), args.files)
        table = compare(args)
        print(table.markdown())
        if args.out is not None:
            print("\n" + "\n".join(str(path) for path in write(table, args.out)))
    except (ValueError, OSError) as error:
        print(f"evaluation.diversity: {error}", file=sys.stderr)
        return 2
    return 0


def compare(args: argparse.Namespace) -> Table:
    samples = read_samples(args.files)
    scorers = _scorers(args, len(samples))
    tokens = Tokens(scorers[0] if args.tokens == "model" else None)
    fixed = settle(samples, tokens, args.budget, args.siblings)
    rows, notes = [], []
    of_files: Sequence[Scorer | None] = scorers or [None] * len(samples)
    for sample, scorer in zip(samples, of_files, strict=True):
        entropies = _entropies(sample, fixed, scorer, args.batch_tokens)
        found = measure(sample, fixed, tokens, entropies, args)
        said = [sample.prompts[prompt] for prompt in fixed.prompts]
        counts = tuple(map(len, said))
        words = sum(len(response.response.split()) for own in said for response in own) / sum(counts)
        means = estimate(found, args.seed)
        rows.append(Row(sample.label, sample.model, sample.temperature, counts, words, tuple(found), means))
        notes += _score_notes(sample.label, entropies.scores)
    return Table(tuple(rows), tuple(_notes(samples, fixed, tokens, args) + _entropy_notes(scorers) + notes))


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
        return Entropies({}, None)
    scores = scorer([response for prompt in fixed.prompts for response in sample.prompts[prompt]], batch_tokens)
    scored = iter(scores.each)
    means = {}
    for prompt in fixed.prompts:
        own = [next(scored) for _ in sample.prompts[prompt]]
        entropy, surprisal = math.fsum(s.entropy for s in own), math.fsum(s.surprisal for s in own)
        means[prompt] = entropy / len(own), surprisal / len(own)
    return Entropies(means, scores)


def _scorers(args: argparse.Namespace, count: int) -> list[Scorer]:
    """One a file; none without models."""
    models = args.model
    if len(models) not in (0, 1, count):
        raise ValueError(f"--model: want one for all files or one for each of the {count}, got {len(models)}")
    template_args = read_template_args(args.chat_template_args)
    loaded = {
        model: Scorer(
            model, chat_template=args.chat_template, template_args=template_args, revision=args.revision,
            trust_remote_code=args.trust_remote_code,
        )
        for model in dict.fromkeys(models)
    }  # fmt: skip
    return [loaded[model] for model in (models if len(models) == count else [*models] * count)]


def _notes(samples: Sequence[Sample], fixed: Fixed, tokens: Tokens, args: argparse.Namespace) -> list[str]:
    """What the numbers stand on, and whatever was left out, with the cause."""
    notes = [f"{len(fixed.prompts)} prompts, those with a response in every file."]
    for sample in samples:
        lost = len(sample.prompts) - len(fixed.prompts)
        if lost or sample.blank:
            why = f"{lost} prompts without a response in another file, {sample.blank} blank responses"
            notes.append(f"{sample.label}: left out {why}.")
    short, alone = len(fixed.prompts) - len(fixed.drawn_from), len(fixed.prompts) - len(fixed.paired)
    notes.append(
        f"distinct-n: {fixed.budget} {tokens.name} a prompt, the same for every file, drawn {DRAWS} times (seed "
        f"{args.seed})" + (f"; left out {short} prompts that have fewer in some file." if short else ".")
    )
    notes.append(_bleu_note(fixed, alone, args.bleu_tokenize))
    if len({sample.temperature for sample in samples}) > 1:
        notes.append("The files differ in temperature, which moves every measure: compare models at equal ones.")
    return notes


def _entropy_notes(scorers: Sequence[Scorer]) -> list[str]:
    if not scorers:
        return ["entropy, surprisal: not measured, want --model."]
    names = ", ".join(dict.fromkeys(scorer.path for scorer in scorers))
    return [f"entropy, surprisal: nats a token of the response, at temperature 1, by {names}."]


def _score_notes(label: str, scores: Scores | None) -> list[str]:
    """Where what was scored may not be what was sampled."""
    notes = []
    if scores is not None and scores.other_tokens:
        notes.append(
            f"{label}: the text of {scores.other_tokens} responses makes another number of tokens than were sampled."
        )
    if scores is not None and scores.other_template:
        notes.append(
            f"{label}: {scores.other_template} responses were sampled with another chat template, or other arguments "
            "of it, than they were scored with (--chat-template, --chat-template-args): entropy and surprisal are not "
            "those of the sampling."
        )
    return notes


def _bleu_note(fixed: Fixed, alone: int, tokenize: str) -> str:
    if not fixed.siblings:
        return "self-BLEU: refused, it compares responses to one prompt, and no prompt has two in every file."
    told = f"self-BLEU: sacrebleu's sentence BLEU, {tokenize}; each of {fixed.siblings} responses against the others"
    return told + (f"; left out {alone} prompts that have fewer in some file." if alone else ".")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m evaluation.diversity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", help="JSONL of responses, several to a prompt")
    add("--model", action="append", default=[], help="whose entropy: a folder; once, or once a file, in their order")
    add("--revision", help="of the models on the hub")
    add("--trust-remote-code", action="store_true", help="run code that comes with a model")
    add("--chat-template", help="a file or a template, in place of the tokenizer's; as when the responses were made")
    add("--chat-template-args", default="{}", help="JSON of names that the template reads; likewise")
    add("--budget", type=int, help="tokens of a prompt for distinct-n (default: what 95 %% of the prompts have)")
    add("--siblings", type=int, help="responses of a prompt for self-BLEU (default: what 95 %% of the prompts have)")
    add("--tokens", choices=("words", "model"), default="words", help="of distinct-n; model: the first --model's")
    add("--bleu-tokenize", choices=BLEU_TOKENIZERS, default="13a", help="sacrebleu's tokenizer")
    add("--batch-tokens", type=int, default=8192, help="padded tokens of a forward")
    add("--seed", type=int, default=0, help="of what is drawn, and of the bootstrap")
    add("--out", type=Path, help=f"folder for {', '.join(FILES)}")
    args = parser.parse_args(argv)
    if args.tokens == "model" and not args.model:
        parser.error("--tokens model: want --model, got none")
    if args.batch_tokens < 1:
        parser.error(f"--batch-tokens: want at least 1, got {args.batch_tokens}")
    return args


if __name__ == "__main__":
    sys.exit(main())
