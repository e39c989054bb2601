"""The one exception for a user's mistake."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Wrong input. The text is one line that says what was wrong, where, and what to do.

    Commands print it and end with exit code 2.
    """


def choose(what: str, name: str, table: Mapping[str, T]) -> T:
    """Returns `table[name]`; an unknown name lists the choices of the field `what`."""
    if name not in table:
        raise UserError(f"{what}={name!r} is unknown; choose one of {sorted(table)}")
    return table[name]
