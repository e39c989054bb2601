"""Paths as a user types them."""

import glob
import os
from pathlib import Path

from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import addresses, copies


def expand_user(text: str | os.PathLike[str]) -> str:
    """Returns `text` with a leading `~` or `~NAME` replaced by that home directory.

    Every flag, config field and config argument that is a path is expanded here and
    nowhere else. A folder that is called `~` is written `./~`. Raises UserError for the
    home directory of an unknown user.
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
    """Returns `expand_user(text)` as a Path to read from; of an address, a copy of it.

    An address is gs://, s3:// or file://, see `base.remote`. Raises UserError for one where
    there is nothing, or that cannot be read.
    """
    if addresses.is_address(text):
        return copies.fetch(addresses.parse(text))
    return Path(expand_user(text))


def user_pattern(pattern: str) -> list[str]:
    """Returns the files that match a pattern with * and ?; of addresses, their copies."""
    if addresses.is_address(pattern):
        return copies.fetch_matching(addresses.parse(pattern))
    return glob.glob(expand_user(pattern))


def locate(text: str | os.PathLike[str]) -> str:
    """Returns a text that is the same for the same place: an address, or an absolute path."""
    if addresses.is_address(text):
        return str(addresses.parse(text))
    return str(Path(expand_user(text)).resolve())


def local_path(text: str | os.PathLike[str]) -> Path:
    """Returns `expand_user(text)` as a Path to write to; raises UserError for an address.

    Path("gs://bucket/a") would be a local folder `gs:`.
    """
    if addresses.is_address(text):
        raise UserError(
            f"{os.fspath(text)}: only folders and files of this machine are written here; "
            "copy them afterwards (gcloud storage cp, aws s3 cp)"
        )
    return Path(expand_user(text))
