"""Sources -> tokenised examples on disk: made once for the same data, tokenizer and options, then found again."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import datasets
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from train.data.formats import Format
from train.data.report import Report
from train.data.rows import Row
from train.data.schemas import Wanted, examples, find_format
from train.data.sources import Source, local_files, local_path, read, weighted_rows
from train.data.store import Example, Prepared, find, save
from train.data.texts import Dropped
from train.data.tokens import Tokeniser, TokenOptions

__all__ = ["Prepared", "prepare"]
_VERSION = 1  # of the examples that are made of the same input


def prepare(
    sources: Sequence[Source], stage: str, tokenizer: PreTrainedTokenizerBase, options: TokenOptions, folder: Path, *,
    columns: Sequence[str] = (), sequence_columns: Sequence[str] = (), renamed: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Prepared:  # fmt: skip
    """columns, sequence_columns: what the objective asks for; renamed: its name of a column -> the data's."""
    if not sources:
        raise ValueError("prepare: want at least one source, got none")
    wanted = Wanted(
        stage=stage, columns=tuple(columns), sequence_columns=tuple(sequence_columns), renamed=dict(renamed or {})
    )
    place = Path(folder) / _key(sources, wanted, tokenizer, options, seed)
    known = find(place)
    if known is not None:
        return known
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tables.") as cache:
        parts = [_open(source, wanted, seed + i, Path(cache)) for i, source in enumerate(sources)]
        report = Report()
        save(place, _examples(parts, wanted, Tokeniser(tokenizer, options), report), wanted, report)
    made = find(place)
    assert made is not None, "save leaves it there or raises"
    return made


class _Part(NamedTuple):
    """An opened source."""

    label: str
    rows: datasets.Dataset
    order: list[int]
    form: Format


def _open(source: Source, wanted: Wanted, seed: int, cache: Path) -> _Part:
    """The first row has to be of a known schema, with the columns that are asked for."""
    rows = read(source, cache)
    order = weighted_rows(len(rows), source.weight, seed)
    first = Row(f"{source.label} row 0", rows[0])
    form = find_format(first, source.format, wanted.stage)
    examples(first, form, wanted)
    return _Part(source.label, rows, order, form)


def _examples(parts: Sequence[_Part], wanted: Wanted, tokenise: Tokeniser, report: Report) -> Iterator[Example]:
    names: Counter[str] = Counter()
    for part in parts:
        drawn = tqdm(part.rows.select(part.order), desc=part.label, disable=None)
        for index, values in zip(part.order, drawn, strict=True):
            report.read(part.label)
            row = Row(f"{part.label} row {index}", values)
            for example in _of_row(row, f"{part.label}:{index}", part.form, wanted, tokenise, report):
                names[example.id] += 1
                times = names[example.id]
                yield example if times == 1 else example._replace(id=f"{example.id}#{times}")


def _of_row(
    row: Row, name: str, form: Format, wanted: Wanted, tokenise: Tokeniser, report: Report
) -> Iterator[Example]:
    texts = examples(row, form, wanted)
    if isinstance(texts, Dropped):
        report.drop(texts)
        return
    for k, text in enumerate(texts):
        try:
            tokens = tokenise(text)
        except Exception as error:  # a template refuses by errors of its own
            raise ValueError(f"{row.where}: {error}") from error
        if isinstance(tokens, Dropped):
            report.drop(tokens)
            continue
        report.keep(tokens)
        own = name if len(texts) == 1 else f"{name}.{k}"
        yield Example(own, tokens.prompt, tokens.responses, text.columns, text.sequence_columns)


def _key(
    sources: Sequence[Source], wanted: Wanted, tokenizer: PreTrainedTokenizerBase, options: TokenOptions, seed: int
) -> str:
    """sha256 over all that the examples follow from."""
    said = {
        "version": _VERSION,
        "sources": [{**asdict(source), "content": _content(source)} for source in sources],
        "wanted": [wanted.stage, wanted.columns, wanted.sequence_columns, dict(wanted.renamed)],
        "tokenizer": _tokenizer_content(tokenizer),
        "options": [options.max_length, options.truncation_mode, dict(options.chat_template_args)],
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _content(source: Source) -> str:
    path = local_path(source)
    return str(read(source)._fingerprint) if path is None else _files_content(path, local_files(path))


def _files_content(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    """Vocabulary, special tokens and chat template, as the tokenizer saves them."""
    tokenizer("a")  # takes back what padding and truncation of an earlier call have left in it
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return _files_content(Path(folder), local_files(Path(folder)))
