"""Exceptions that end a command: a user's mistake, a breakdown of a run, a stop."""

import contextlib
import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The same errors in messages of libraries that are written in other languages.
_NO_ROOM_WORDS = r"No space left on device|Disk quota exceeded|File too large"
# What JAX says of a full device; storage says it of a quota.
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
_OF_DEVICES = ("JaxRuntimeError", "XlaRuntimeError")  # without importing JAX


class UserError(ValueError):
    """Wrong input. The text is one line that says what was wrong, where, and what to do.

    Commands print it and end with exit code 2.
    """


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or not a number."""


class Preempted(Exception):
    """The run was asked to stop; everything needed to continue is on disk."""


@contextlib.contextmanager
def reword_errors(words: Mapping[str, str]) -> Iterator[None]:
    """Rewrites the message of a UserError raised inside: {regular expression: replacement}."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for pattern, replacement in words.items():
            text = re.sub(pattern, replacement, text)
        raise UserError(text) from None


def choose(what: str, name: str, table: Mapping[str, T]) -> T:
    """Returns `table[name]`; raises UserError that lists the choices of the field `what`."""
    if name not in table:
        raise UserError(unknown(what, name, table))
    return table[name]


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """Returns the message that a field names none of its choices."""
    known = sorted(choices)
    return f"{what}={name!r} is unknown; choose one of {known}{suggest(name, known)}"


def suggest(name: str, choices: Iterable[str]) -> str:
    """Returns "; did you mean 'NAME'?" for the choice that is spelled most alike, or ""."""
    lower = {choice.lower(): choice for choice in map(str, choices)}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""


def full_disk(error: BaseException | None) -> str | None:
    """Returns the system's message if a write failed because the disk is full, else None.

    Searches the error and those that it was raised from.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            where = f": {error.filename}" if error.filename else ""
            return f"{error.strerror}{where}"
        if words := re.search(_NO_ROOM_WORDS, str(error)):
            return words[0]
        error = error.__cause__ or error.__context__
    return None


def no_memory(error: BaseException) -> str:
    """Returns what to say where a device or this machine has no memory left, or ""."""
    where = "this machine" if isinstance(error, MemoryError) else "the devices"
    full = type(error).__name__ in _OF_DEVICES and OUT_OF_MEMORY in str(error)
    if not full and not isinstance(error, MemoryError):
        return ""
    why = " ".join(str(error).split())[:160]
    return (
        f"the memory of {where} is too small ({why}); give a smaller batch: "
        "`--batch_size`, or for `eval` `--config.evaluate.batch_size`"
    )


def missing_field(error: Exception) -> str:
    """Returns what to say where a section of the config lacks a field that is read, or "".

    Only a ConfigDict raises an AttributeError that holds a KeyError.
    """
    cause = error.args[0] if isinstance(error, AttributeError) and error.args else None
    if not isinstance(cause, KeyError):
        return ""
    # The other lines of its text guess at a name that is alike.
    field = str(cause.args[0]).partition("\n")[0]
    return (
        f"a section of the config lacks the field {field}; one written by hand "
        "needs every field, as `flax-adapt show --config=NAME --fields` lists them"
    )
