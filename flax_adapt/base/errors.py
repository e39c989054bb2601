"""Exceptions that end a command: a user's mistake, a breakdown of a run, a stop."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Wrong input. The text is one line that says what was wrong, where, and what to do.

    Commands print it and end with exit code 2.
    """


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or not a number."""


class Preempted(Exception):
    """The run was asked to stop; everything needed to continue is on disk."""


@contextlib.contextmanager
def reworded(words: Mapping[str, str]) -> Iterator[None]:
    """Puts a UserError into the words of a caller: {regular expression: replacement}."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for pattern, replacement in words.items():
            text = re.sub(pattern, replacement, text)
        raise UserError(text) from None


def choose(what: str, name: str, table: Mapping[str, T]) -> T:
    """Returns `table[name]`; an unknown name lists the choices of the field `what`."""
    if name not in table:
        raise UserError(unknown(what, name, table))
    return table[name]


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """Returns the message that a field names none of its choices."""
    return f"{what}={name!r} is unknown; choose one of {sorted(choices)}"
