"""Weights and data on remote storage are read through copies in the user's cache folder.

Readers map files, open them in any order and list folders: what they need is a file. Each
host fetches an object once, and again where its size, generation or ETag has changed. A
copy lies at the same path as the object, `remote/gs/BUCKET/KEY`, so that what refers to its
neighbours finds them. One process is asked for an address once: data does not change
within a run.
"""

import contextlib
import functools
import logging
import os
import posixpath
from collections.abc import Collection
from pathlib import Path

from flax_adapt.base import caches, file_locks
from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import addresses, store
from flax_adapt.base.remote.addresses import Address

log = logging.getLogger(__name__)
_STAGES = "stages/"


def root() -> Path:
    """Returns the folder of all copies."""
    return caches.user_folder(addresses.COPIES)


@functools.cache
def fetch(address: Address) -> Path:
    """Returns the copy of a folder or of an object, brought up to date.

    Objects that are gone are deleted from the copy of a folder. Raises UserError where
    there is nothing, and for whatever hinders reading it.
    """
    wanted = store.list_objects(address)
    if not wanted:
        raise UserError(f"{address}: there is no such object or folder")
    return update_copy(address, wanted, root(), deletes=True)


@functools.cache
def fetch_weights(address: Address) -> Path:
    """Returns the copy of a folder or file of weights; see `fetch`.

    With the checkpoint of a run comes the config.json of its workdir. Raises UserError for
    a workdir, which may hold much.
    """
    if any(name.startswith(_STAGES) for name in store.list_objects(address)):
        raise UserError(
            f"{address}: is the workdir of a run; give its stages/NAME/export, or "
            "stages/NAME/checkpoints"
        )
    workdir, in_run, _ = address.path.rpartition(f"/{_STAGES}")
    if in_run:
        with contextlib.suppress(UserError):  # the reader says that it is missing
            fetch(Address(address.scheme, f"{workdir}/config.json"))
    return fetch(address)


def forget() -> None:
    """Asks for every address anew from now on."""
    fetch.cache_clear()
    fetch_weights.cache_clear()


def fetch_beside(folder: Path, names: Collection[str]) -> None:
    """Fetches objects that a table in `folder`, a copy, names relative to that folder.

    A folder that is no copy is left alone. So are names that are not there: their reader
    counts them.
    """
    text = addresses.restore(f"{folder}/")
    if not addresses.is_address(text) or not names:
        return
    here = addresses.parse(text)
    joined = (f"{here.path}/{name}" for name in names if not name.startswith("/"))
    paths = {posixpath.normpath(path) for path in joined}
    inside = {path for path in paths if not path.startswith("..")}
    common = posixpath.commonpath([here.path, *map(posixpath.dirname, inside)])
    if not common.strip("/"):
        return
    address = Address(here.scheme, common)
    there = store.list_objects(address)
    wanted = {path.removeprefix(common).strip("/") for path in inside} & there.keys()
    update_copy(address, {n: there[n] for n in wanted}, root(), deletes=False)


def fetch_matching(pattern: Address) -> list[str]:
    """Returns the copies of the objects that match a pattern with * and ?."""
    return [str(fetch(address)) for address in store.find_matching(pattern)]


def update_copy(
    address: Address, wanted: dict[str, store.Entry], folder: Path, *, deletes: bool
) -> Path:
    """Returns the copy of `address` in a folder of copies, with `wanted` up to date in it.

    deletes: other files in it are deleted.
    """
    target = address.copy_in(folder)
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with file_locks.hold(locks / address.digest):
        if deletes:
            _delete_others(target, wanted)
        old = {n: e for n, e in wanted.items() if store.Entry.of_file(target / n) != e}
        if old:
            size = sum(entry.size for entry in old.values())
            log.info("%s: fetching %d files, %.3g MB", address, len(old), size / 1e6)
            store.download(address, old, target, folder / "parts" / address.digest)
    return target


def _delete_others(target: Path, wanted: Collection[str]) -> None:
    if "" in wanted or target.is_file():  # an object where a folder was, or the reverse
        if target.is_dir() or (target.is_file() and "" not in wanted):
            raise UserError(f"{target}: was a folder, or a file, before: delete it")
        return
    for name in list_files(target):
        if name not in wanted:
            (target / name).unlink(missing_ok=True)
    for folder, _, _ in os.walk(target, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(folder)


def list_files(folder: Path) -> list[str]:
    """Returns the names of all files below a folder."""
    return [
        os.path.relpath(os.path.join(here, name), folder)
        for here, _, names in os.walk(folder)
        for name in names
    ]
