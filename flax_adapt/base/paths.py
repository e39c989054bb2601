"""Paths as a user types them."""

import os
from pathlib import Path

from flax_adapt.base.errors import UserError


def user_path(text: str | os.PathLike[str]) -> Path:
    """Returns the path with a leading `~` or `~NAME` replaced by that home directory.

    The one place that does so: every flag, config field and argument that is a path
    comes through here. A folder that is called `~` is written `./~`. Raises UserError
    where nobody's home directory is meant.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"{text}: {Path(text).parts[0]} is nobody's home directory; write the whole "
            "path, or ./~ for a folder of that name"
        ) from None
