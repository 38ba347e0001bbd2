"""A judge's answers on disk, by a digest of all that they depend on; several processes may use one file at once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from evaluation.judging.judge import Answer, JudgeSettings
from evaluation.judging.templates import Template

_PATIENCE = 60.0  # seconds to wait for another process's write
_COLUMNS = "text, prompt_tokens, completion_tokens, finish"


def digest(settings: JudgeSettings, template: Template, prompt: str, first: str, second: str) -> str:
    """first and second as they are shown, so both orders have entries of their own; the API key has no part in it."""
    parts = {
        "url": settings.url,
        "model": settings.model,
        "sampling": settings.sampling,
        "template": template.text,
        "message": template.fill(prompt, first, second),  # what we put around the texts may change
        "prompt": prompt,
        "first": first,
        "second": second,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Cache:
    """Holds answers, never failures. The first answer under a key stays: whoever comes later is given that one."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite does not wait for another process while a file becomes write-ahead logged
        with FileLock(f"{path}.lock"):
            self._connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers "
                    "(key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER)"
                )
                self._add_finish()
            except sqlite3.DatabaseError as error:
                self._connection.close()
                raise ValueError(f"{path}: want an SQLite file of answers, got: {error}") from error

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def _add_finish(self) -> None:
        """A file from before answers had it: theirs is NULL, unknown."""
        columns = {column[1] for column in self._connection.execute("PRAGMA table_info(answers)")}
        if "finish" not in columns:
            self._connection.execute("ALTER TABLE answers ADD COLUMN finish TEXT")

    def get(self, key: str) -> Answer | None:
        row = self._connection.execute(f"SELECT {_COLUMNS} FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        return Answer(text=row[0], prompt_tokens=row[1], completion_tokens=row[2], finish=row[3])

    def put(self, key: str, answer: Answer) -> Answer:
        """-> what is kept: another process's answer, if it came first."""
        if answer.error is not None:
            raise ValueError(f"Cache.put: want an answer, got the failure {answer.error!r}")
        self._connection.execute(
            f"INSERT OR IGNORE INTO answers (key, {_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
            (key, answer.text, answer.prompt_tokens, answer.completion_tokens, answer.finish),
        )
        kept = self.get(key)
        assert kept is not None, "what was put is there"
        return kept
