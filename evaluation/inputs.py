"""What a command was given and refuses, told apart from mistakes of our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A command ends with this message alone; any other ValueError shows where it came from."""


@contextmanager
def checking() -> Iterator[None]:
    """Around what reads and checks input: its errors are the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error
