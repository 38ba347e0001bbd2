"""Files that survive a stop: JSON lines that are whole or not there, other files too, one writer, no lost input."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

Json = Mapping[str, Any]


def append_rows(path: Path, rows: Iterable[Json]) -> None:
    """On the disk when this returns, all of them or, where writing fails, none. For one writer at a time."""
    with path.open("a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        file.seek(max(0, before - 1))
        opening = b"\n" if file.read(1) not in (b"", b"\n") else b""  # the last line has no end of its own
        try:
            _write_all(file.fileno(), opening + _encoded(rows))
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)
            raise


def write_rows(path: Path, rows: Iterable[Json]) -> None:
    """The whole file at once, an object a line; see write_bytes."""
    write_bytes(path, _encoded(rows))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """What was there before stays until all of this is on the disk."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with hidden.open("wb", buffering=0) as file:
            _write_all(file.fileno(), content)
            os.fsync(file.fileno())
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def torn_bytes(content: bytes) -> int:
    """Of the last line, where it is no whole object, as a killed process or a full disk leaves it."""
    last = content[content.rfind(b"\n") + 1 :]
    return len(last) if last and not _is_object(last) else 0


def cut(path: Path, count: int) -> None:
    """The last bytes."""
    with path.open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - count)
        os.fsync(file.fileno())


@contextlib.contextmanager
def only_writer(place: Path) -> Iterator[None]:
    """Of a file or a folder, until this process ends, however it does."""
    folder = place.is_dir()
    # beside a file, not on it: a file that is replaced takes a lock on it along
    lock = FileLock(place / ".lock" if folder else place.with_name(f".{place.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        kind = "folder" if folder else "file"
        raise ValueError(f"{place}: want a {kind} that no other process is writing, got one that is") from None
    try:
        yield
    finally:
        lock.release()


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """No output may be an input, lie in a folder that is one, be a folder or be another output."""
    given = [path.resolve() for path in inputs]
    seen: set[Path] = set()
    for path in outputs:
        own = path.resolve()
        if own in seen or any(own == one or (one.is_dir() and own.is_relative_to(one)) for one in given):
            raise ValueError(f"{path}: want an output that is neither an input nor another output, got one that is")
        if own.is_dir():
            raise ValueError(f"{path}: want a file to write, got a folder")
        seen.add(own)


def names_of(paths: Sequence[Path]) -> list[str] | None:
    """File names without endings, with their folder's where two files have one name; None where that is not enough."""
    short, long = [path.stem for path in paths], [f"{path.resolve().parent.name}-{path.stem}" for path in paths]
    return next((names for names in (short, long) if len(set(names)) == len(names)), None)


def _encoded(rows: Iterable[Json]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _write_all(handle: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
