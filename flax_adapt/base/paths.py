"""Paths as a user types them."""

import os
import re
from pathlib import Path

from flax_adapt.base.errors import UserError

# A Path has made one slash of the two.
_ADDRESS = re.compile("[a-z][a-z0-9+.-]+:/")


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
    """Returns `expand_user(text)` as a Path; raises UserError for an address such as gs://.

    Path("gs://bucket/a") would be a local folder `gs:`.
    """
    path = expand_user(text)
    if _ADDRESS.match(path):
        raise UserError(
            f"{path}: only folders and files of this machine are read and written here; "
            "mount the bucket (gcsfuse, NFS), or copy the files (gcloud storage cp); the "
            "prepared data of tfds: alone may lie elsewhere (data_dir)"
        )
    return Path(path)
