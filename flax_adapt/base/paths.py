"""Paths as a user types them."""

import os
from pathlib import Path

from flax_adapt.base.errors import UserError


def expand_user(text: str | os.PathLike[str]) -> str:
    """Returns `text` with a leading `~` or `~NAME` replaced by that home directory.

    The one place that does so: every flag, config field and config argument that is a
    path comes through here. A folder that is called `~` is written `./~`. Raises
    UserError where nobody's home directory is meant.
    """
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        name = expanded.partition("/")[0]
        raise UserError(
            f"{text}: {name} is nobody's home directory; write the whole path, or "
            f"./{name} for something of that name"
        )
    return expanded


def user_path(text: str | os.PathLike[str]) -> Path:
    """`expand_user` as a Path."""
    return Path(expand_user(text))
