"""Lists, reads and writes objects of remote storage; all errors are one line."""

import contextlib
import datetime
import importlib.util
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError, full_disk
from flax_adapt.base.remote.addresses import SCHEMES, Address

_AT_ONCE = 256  # files in one call, which are transferred together
# Facts that change whenever an object is written again, by the names of several stores.
_FACTS = ("generation", "etag", "ETag", "md5Hash", "size", "mtime", "LastModified")


class Entry(NamedTuple):
    """An object: its bytes, and a number that changes whenever it is written again.

    stamp: nanoseconds; the seconds are those of the last change. A copy has it as the time
    of its last change, which so says whether it is up to date.
    """

    size: int
    stamp: int

    @staticmethod
    def of_file(path: str | os.PathLike[str]) -> "Entry | None":
        """Returns that of a local copy; None where there is none."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(found.st_size, found.st_mtime_ns)


@contextlib.contextmanager
def say_in_one_line(what: object) -> Iterator[None]:
    """Raises UserError, which names `what`, for any error of the storage or the network.

    Each package and version raises errors of classes of its own.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if full_disk(error) is not None:
            raise
        raise UserError(_describe(what, error)) from error


def _describe(what: object, error: Exception) -> str:
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    status = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or str(status) == "404":
        return f"{what}: there is no such object, folder or bucket ({why})"
    said = f"{why} {status}".lower()
    if isinstance(error, PermissionError) or any(
        word in said for word in ("403", "401", "forbidden", "denied", "credentials")
    ):
        return (
            f"{what}: these credentials may not do this; log in (gcloud auth "
            f"application-default login, aws configure), or ask for the right ({why})"
        )
    return f"{what}: the storage cannot be reached; try again with a connection ({why})"


def open_storage(address: Address) -> Any:
    """Returns the fsspec file system of an address; raises UserError without its package."""
    scheme = SCHEMES[address.scheme]
    if scheme.package and importlib.util.find_spec(scheme.package) is None:
        raise UserError(
            f"{address}: install what reads and writes {address.scheme}:// first: "
            f"pip install 'flax-adapt[{scheme.extra}]'"
        )
    import fsspec

    # Others write, too: Orbax's TensorStore, other hosts. epath has file systems of its own.
    for name in scheme.names:
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    # It logs a traceback for each error that it tries again after.
    logging.getLogger(scheme.package or "fsspec").setLevel(logging.CRITICAL)
    with say_in_one_line(address):
        return fsspec.filesystem(address.scheme)


def list_objects(address: Address) -> dict[str, Entry]:
    """Returns {name below the address: Entry}; {"": Entry} for the address of one object.

    {} where there is nothing. Raises UserError where the bucket is missing, or cannot be
    read, and for a name with "..", which would lie outside of a folder of copies.
    """
    storage = open_storage(address)
    with say_in_one_line(address):
        if address.scheme == "file" and not storage.exists(address.path):
            return {}
        found: Mapping[str, Any] = storage.find(address.path, detail=True)
    objects = {}
    for path, facts in found.items():
        name = path.removeprefix(address.path).removeprefix("/")
        if path.endswith("/") or facts.get("type") == "directory":
            continue  # a folder that a browser has made
        if ".." in name.split("/"):
            raise UserError(
                f"{address}: the name {name!r} is not copied: it has a '..'"
            )
        objects[name] = Entry(int(facts["size"]), _stamp(facts))
    return objects


def _stamp(facts: Mapping[str, Any]) -> int:
    when = facts.get("mtime") or facts.get("LastModified") or facts.get("updated") or 0
    if isinstance(when, str):
        when = datetime.datetime.fromisoformat(when.replace("Z", "+00:00"))
    seconds = when.timestamp() if isinstance(when, datetime.datetime) else float(when)
    tag = repr([str(facts.get(name)) for name in _FACTS])
    return int(seconds) * 10**9 + zlib.crc32(tag.encode()) % 10**9


def find_matching(pattern: Address) -> list[Address]:
    """Returns the addresses of the objects that match a pattern with * and ?, sorted."""
    storage = open_storage(pattern)
    with say_in_one_line(pattern):
        return [
            Address(pattern.scheme, path) for path in sorted(storage.glob(pattern.path))
        ]


def download(
    address: Address, wanted: Mapping[str, Entry], target: Path, parts: Path
) -> None:
    """Copies objects below an address to `target`, each whole or not at all.

    wanted: of `list_objects`. parts: a folder on the same disk, for files that are not
    whole yet; it is deleted in the end.
    """
    storage, names = open_storage(address), sorted(wanted)
    try:
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            parts.mkdir(parents=True, exist_ok=True)
            files = [parts / str(number) for number in range(len(some))]
            with say_in_one_line(address):
                storage.get(_paths(address, some), [str(file) for file in files])
            for name, file in zip(some, files, strict=True):
                _settle(address.join(name), file, wanted[name], target / name)
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _settle(address: Address, file: Path, entry: Entry, target: Path) -> None:
    if file.stat().st_size != entry.size:
        raise UserError(f"{address}: it was changed while it was copied: run again")
    os.utime(file, ns=(entry.stamp, entry.stamp))
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, target)


def upload(address: Address, folder: Path, names: Sequence[str]) -> None:
    """Copies files of a folder to objects below an address."""
    storage = open_storage(address)
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        with say_in_one_line(address):
            if address.scheme == "file":
                for path in {os.path.dirname(p) for p in _paths(address, some)}:
                    storage.makedirs(path, exist_ok=True)
            storage.put([str(folder / name) for name in some], _paths(address, some))


def delete(address: Address, names: Sequence[str]) -> None:
    """Deletes objects below an address."""
    storage = open_storage(address)
    if names:
        with say_in_one_line(address):
            storage.rm(_paths(address, names))


def _paths(address: Address, names: Sequence[str]) -> list[str]:
    return [address.join(name).path if name else address.path for name in names]
