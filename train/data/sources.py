"""Where data comes from: local files, folders of them, or the hub; which rows, and how often an epoch has them."""

from __future__ import annotations

import csv
import gzip
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from train.data.formats import FORMATS

_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_NOT_DATA = {"dataset_info.json", "dataset_infos.json"}


@dataclass(frozen=True, kw_only=True)
class Source:
    path: str  # a file, a folder of files, or a name on the hub
    split: str = "train"
    limit: int | None = None  # of rows, the first ones
    weight: float = 1.0  # passes that an epoch makes over it
    format: str = "auto"
    name: str | None = None  # the hub's configuration
    revision: str | None = None

    def __post_init__(self) -> None:
        where = f"source {self.path}"
        if not self.path:
            raise ValueError("source: want a path, got none")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"{where}: want limit >= 1, got {self.limit}")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"{where}: want a finite weight > 0, got {self.weight}")
        if self.format not in ("auto", *FORMATS):
            raise ValueError(f"{where}: want format auto or one of {', '.join(FORMATS)}, got {self.format!r}")

    @property
    def label(self) -> str:
        """What its rows are called by: the last part of a local path, or the hub's name."""
        path = local_path(self)
        return self.path if path is None else path.absolute().name


def local_path(source: Source) -> Path | None:
    """None for a name on the hub; what exists here is never looked for there."""
    path = Path(source.path).expanduser()
    if path.exists():
        if source.name is not None or source.revision is not None:
            raise ValueError(f"source {source.path}: want name and revision with the hub only, got a local path")
        return path
    if source.path.startswith((".", "/", "~")) or _kind(path) is not None:
        raise FileNotFoundError(f"source {source.path}: want a file or a folder, got a path that does not exist")
    return None


def local_files(path: Path) -> list[Path]:
    """A file itself; of a folder everything in it that is not hidden."""
    if path.is_file():
        return [path]
    inside = (found for found in path.rglob("*") if found.is_file())
    return sorted(found for found in inside if not any(part[0] == "." for part in found.relative_to(path).parts))


def read(source: Source, cache_dir: Path | None = None) -> datasets.Dataset:
    """cache_dir: where datasets puts its tables of local files, for one process alone; the hub's have a shared one."""
    path = local_path(source)
    if path is None:
        rows = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    else:
        rows = _read_local(source, path, None if cache_dir is None else str(cache_dir))
    if len(rows) == 0:
        raise ValueError(f"source {source.path}: want rows of split {source.split}, got none")
    return rows if source.limit is None else rows.select(range(min(source.limit, len(rows))))


def weighted_rows(count: int, weight: float, seed: int) -> list[int]:
    """The rows of an epoch: all, as often as the whole part of the weight says; for the rest of it a random share."""
    passes = int(weight)
    share = sorted(random.Random(seed).sample(range(count), round((weight - passes) * count)))
    rows = [*list(range(count)) * passes, *share]
    if not rows:
        raise ValueError(f"weight: want one that leaves a row of {count}, got {weight}")
    return rows


def _read_local(source: Source, path: Path, cache_dir: str | None) -> datasets.Dataset:
    files = {"train": [str(path)]} if path.is_file() else _files_of_splits(source, path, cache_dir)
    kinds = {_kind(Path(file)) for listed in files.values() for file in listed}
    kind = kinds.pop()
    if kind is None or kinds:
        raise ValueError(
            f"source {source.path}: want files of one kind, ending in {', '.join(_KINDS)}, got {_names(files)}"
        )
    files = {split: listed for split, listed in files.items() if split in re.findall(r"\w+", source.split)} or files
    try:
        options = _csv_options([Path(file) for listed in files.values() for file in listed]) if kind == "csv" else {}
        return datasets.load_dataset(kind, data_files=files, split=source.split, cache_dir=cache_dir, **options)
    except (ValueError, StopIteration, datasets.exceptions.DatasetGenerationError) as error:
        came = str(error.__cause__ or error) or "an empty file"
        raise ValueError(f"source {source.path}: want rows of split {source.split}, got: {came}") from error


def _csv_options(files: list[Path]) -> dict[str, Any]:
    """Everything is text: no guess turns 007 into a number or NA into nothing."""
    opener = gzip.open if files[0].suffix == ".gz" else open
    with opener(files[0], "rt", newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file))
    return {"features": datasets.Features(dict.fromkeys(names, datasets.Value("string"))), "keep_default_na": False}


def _files_of_splits(source: Source, folder: Path, cache_dir: str | None) -> dict[str, list[str]]:
    """As datasets sorts them, by names such as train and test; every data file has to belong to one."""
    builder = datasets.load_dataset_builder(str(folder), cache_dir=cache_dir)
    files = {str(split): list(map(str, listed)) for split, listed in builder.config.data_files.items()}
    listed = {Path(file).resolve() for some in files.values() for file in some}
    data = (found for found in local_files(folder) if _kind(found) and found.name not in _NOT_DATA)
    stray = [str(found.relative_to(folder)) for found in data if found.resolve() not in listed]
    if stray:
        raise ValueError(
            f"source {source.path}: want each file in a split and all of one kind, got {_names(files)}, "
            f"and beside them {', '.join(stray)}"
        )
    return files


def _names(files: dict[str, list[str]]) -> str:
    return "; ".join(f"{split}: {', '.join(Path(file).name for file in listed)}" for split, listed in files.items())


def _kind(path: Path) -> str | None:
    return _KINDS.get(Path(path.name.removesuffix(".gz")).suffix)
