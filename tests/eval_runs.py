"""Files, commands and judges for the tests of evaluation.winrate."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from eval_server import Reply

from evaluation.judging import verdicts

ROOT = Path(__file__).parent.parent
SHOWN = re.compile(r"<<<RESPONSE (A|B) \w+>>>\n(.*?)\n<<<END OF RESPONSE", re.DOTALL)


def shown(message: str) -> dict[str, str]:
    return dict(SHOWN.findall(message))


def truthful(number: int, message: str) -> Reply:
    """Prefers what begins with good; a tie where both do or none does."""
    good = [place for place, text in shown(message).items() if text.startswith("good")]
    return Reply(text=f"Thus.\nVerdict: {good[0] if len(good) == 1 else 'TIE'}")


def write(path: Path, texts: list[str], prompts: list[str] | None = None) -> Path:
    names = prompts or [f"prompt {i}" for i in range(len(texts))]
    rows = [{"prompt": name, "response": text} for name, text in zip(names, texts, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files(place: Path, count: int) -> list[str]:
    a = write(place / "model.jsonl", [f"good {i}" for i in range(count)])
    b = write(place / "base.jsonl", [f"bad {i}" for i in range(count)])
    return ["--a", str(a), "--b", str(b)]


def command(place: Path, server_url: str, *more: str, out: str = "out") -> list[str]:
    return [
        "--judge-url", server_url, "--judge-model", "judge", "--out", str(place / out),
        "--cache", str(place / "cache.sqlite3"), "--backoff", "0.02", "--attempts", "2", "--timeout", "5", *more,
    ]  # fmt: skip


def report_of(place: Path, out: str = "out") -> list[dict]:
    return json.loads((place / out / "report.json").read_text())


def kept(place: Path, out: str = "out") -> list[verdicts.Verdict]:
    return verdicts.read(place / out / "model" / "verdicts.jsonl")


def process(arguments: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "evaluation.winrate", *arguments], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
