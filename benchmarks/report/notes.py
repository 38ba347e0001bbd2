"""What stands under a table: who is not in it and why, what to know of those that are, and the commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from benchmarks.providers import PROVIDERS
from benchmarks.report.shape import is_ours


class Measured(Protocol):
    """A Record, or a Step."""

    @property
    def provider(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def mode(self) -> str | None: ...
    @property
    def command(self) -> str: ...


class Refusal(NamedTuple):
    state: str  # missing, wrong
    provider: str
    reason: str


class HasCommand(Protocol):
    @property
    def command(self) -> str: ...


def named(provider: str) -> str:
    """Ours stand out."""
    return f"**{provider}**" if is_ours(provider) else provider


def refused(own: Iterable[Measured], known: Iterable[Refusal] = ()) -> list[str]:
    """Who was not timed, each once for each reason; known: what has been said above."""
    said = set(known)
    return _listed({refusal: modes for refusal, modes in _refusals(own).items() if refusal not in said})


def everywhere(groups: Sequence[Sequence[Measured]]) -> list[Refusal]:
    """What is to be said of all the groups, so that it is said once."""
    if len(groups) < 2:
        return []
    found = [_refusals(own) for own in groups]
    return [refusal for refusal in found[0] if all(refusal in other for other in found)]


def once(refusals: Sequence[Refusal]) -> list[str]:
    lines = _listed({refusal: [] for refusal in refusals})
    return ["In none of the tables below:", "", *lines] if lines else []


def _refusals(own: Iterable[Measured]) -> dict[Refusal, list[str]]:
    """-> the modes of each."""
    found: dict[Refusal, list[str]] = {}
    for row in own:
        if row.state != "timed":
            found.setdefault(Refusal(row.state, row.provider, row.reason), []).append(str(row.mode))
    return found


def _listed(refusals: Mapping[Refusal, list[str]]) -> list[str]:
    lines = []
    for (state, provider, reason), modes in refusals.items():
        told = f" ({', '.join(dict.fromkeys(modes))})" if modes else ""
        lines.append(f"- {state.capitalize()}: {named(provider)}{told}: {quoted(reason)}")
    return [*lines, ""] if lines else []


def quoted(reason: str) -> str:
    """As code, since it is what a program said: nothing in it is Markdown."""
    return "`" + reason.replace("`", "'").replace("|", "/") + "`"


def about(own: Iterable[Measured]) -> list[str]:
    """The registry's notes on those that were timed."""
    names = dict.fromkeys(row.provider for row in own if row.state == "timed")
    noted = [f"- {name}: {PROVIDERS[name].note}" for name in names if name in PROVIDERS and PROVIDERS[name].note]
    return [*noted, ""] if noted else []


def commands(own: Iterable[HasCommand]) -> list[str]:
    """Each once, on lines of their own."""
    return ["<br>\n".join(f"`{command}`" for command in dict.fromkeys(row.command for row in own)), ""]
