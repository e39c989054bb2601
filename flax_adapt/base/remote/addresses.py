"""Addresses of objects on remote storage, and the local paths of their copies.

gs://BUCKET/KEY     Google Cloud Storage
s3://BUCKET/KEY     S3, and what speaks its protocol
file:///FOLDER      a mounted share, read and written as if it were an object store
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from flax_adapt.base import caches
from flax_adapt.base.errors import UserError, suggest

# A Path has made one slash of the two.
_ADDRESS = re.compile("([a-z][a-z0-9+.-]+):(/+)(.*)", re.DOTALL)
COPIES, WORKDIRS = "remote", "workdirs"


class Scheme(NamedTuple):
    """A kind of storage.

    package, extra: what reads and writes it, and what of ours installs that; "": nothing
    is needed. names: what fsspec calls it, if it keeps lists of it. has_checkpoints: Orbax
    writes there itself, all processes together; else checkpoints are written to a disk, and
    copied.
    """

    package: str
    extra: str
    names: tuple[str, ...]
    has_checkpoints: bool


SCHEMES = {
    "gs": Scheme("gcsfs", "gs", ("gs", "gcs"), True),
    "s3": Scheme("s3fs", "s3", ("s3",), False),
    "file": Scheme("", "", (), False),
}


class Address(NamedTuple):
    """A key in SCHEMES and a path there: BUCKET/KEY, or /FOLDER of file://."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    @property
    def digest(self) -> str:
        """The name of files that belong to an address, such as locks."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:16]

    def join(self, name: str) -> "Address":
        return Address(self.scheme, f"{self.path.rstrip('/')}/{name}")

    def copy_in(self, folder: Path) -> Path:
        """Returns where a copy lies: the same path below a folder of copies."""
        return folder / self.scheme / self.path.lstrip("/")


def is_address(text: str | os.PathLike[str]) -> bool:
    """Returns whether a text is SCHEME:/..., which as a Path would be a local folder."""
    return _ADDRESS.fullmatch(os.fspath(text)) is not None


def parse(text: str | os.PathLike[str]) -> Address:
    """Returns an address; raises UserError for one of another scheme, or without a bucket."""
    found = _ADDRESS.fullmatch(os.fspath(text))
    assert found is not None, text
    scheme, _, path = found.groups()
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(
            f"{text}: addresses here are {known}{suggest(scheme, SCHEMES)}; of other storage, "
            "mount it or copy the files"
        )
    path = path.strip("/")
    if not path or ".." in path.split("/"):
        raise UserError(f"{text}: an address is {scheme}://BUCKET/NAME, without ..")
    return Address(scheme, f"/{path}" if scheme == "file" else path)


def restore(text: str) -> str:
    """Returns a text with the addresses in place of the paths of their copies."""
    cache = re.escape(str(caches.user_folder("")))
    schemes = "|".join(SCHEMES)
    copy = rf"{cache}/(?:{COPIES}|{WORKDIRS}/\d+)/({schemes})/"
    return re.sub(copy, lambda m: f"{m[1]}://{'/' if m[1] == 'file' else ''}", text)


class LogLines(logging.Formatter):
    """Makes of a log record its message alone, with addresses in place of their copies."""

    def format(self, record: logging.LogRecord) -> str:
        return restore(super().format(record))
