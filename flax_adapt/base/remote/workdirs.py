"""A workdir on remote storage: a local copy, brought up to date and written back.

What a run writes needs a file system: files that grow (metrics, events, databases of
trackers), whole folders that take the place of others, locks. So a run works in a copy in
the user's cache folder. `push` writes what has changed: before each checkpoint, after each
stage and in the end, a file that marks others as complete after these. `pull` reads what
process 0 has written. Where Orbax can write to the storage, checkpoints are not in the
copy, see `direct`; else they are copied once they are complete.

Each command has a copy of its own, `workdirs/0/gs/BUCKET/KEY`; that of one that has ended
is used again, so that only what has changed since is read.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from flax_adapt.base import caches, file_locks
from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import addresses, copies, store
from flax_adapt.base.remote.addresses import SCHEMES, Address

log = logging.getLogger(__name__)
LOCK = "lock.json"  # of `experiment.lock`: it is of this machine alone
TIMING = (
    "timing"  # of `experiment.budget`: short runs on this machine, which are deleted
)
_CHECKPOINTS = {"checkpoints", "damaged_checkpoints"}
_UNFINISHED = ".orbax-checkpoint-tmp"
_WHOLE = "_CHECKPOINT_METADATA"  # Orbax writes it last
_REPLACED = {*_CHECKPOINTS, "export"}
# Files that mark others as complete are written in this order, after all others.
_MARKS = ("config.json", _WHOLE, "result.json", "results.json")
_open: list["Workdir"] = []


class Workdir:
    """A workdir on remote storage, and its local copy `folder`.

    is_writer: of process 0. reads_checkpoints: a run continues, so that it needs them.
    """

    def __init__(
        self,
        address: Address,
        copies_folder: Path,
        *,
        is_writer: bool,
        reads_checkpoints: bool,
    ):
        self.address, self.is_writer = address, is_writer
        self.folder = address.copy_in(copies_folder)
        self._root, self._reads = copies_folder, reads_checkpoints
        self.has_checkpoints = SCHEMES[address.scheme].has_checkpoints
        self._known: dict[str, store.Entry] = {}
        self._is_ready = False

    def open(self) -> None:
        """Makes the copy equal to what is stored."""
        found = store.list_objects(self.address)
        if "" in found:
            raise UserError(f"--workdir={self.address} is a file: give a folder")
        self._bring(found, deletes=True)
        for name in found:
            if (step := _step_of(name)) and not self._is_copied(name):
                (self.folder / step).mkdir(parents=True, exist_ok=True)
        self._is_ready = True

    def pull(self) -> None:
        """Brings the copy up to date with what process 0 has pushed."""
        self._bring(store.list_objects(self.address), deletes=False)

    def _bring(self, found: dict[str, store.Entry], *, deletes: bool) -> None:
        wanted = {n: e for n, e in found.items() if self._is_copied(n) and n != LOCK}
        whole = {_step_of(n) for n in wanted if n.endswith(f"/{_WHOLE}")}
        wanted = {n: e for n, e in wanted.items() if _step_of(n) in {"", *whole}}
        copies.update_copy(self.address, wanted, self._root, deletes=deletes)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known |= wanted

    def _is_copied(self, name: str) -> bool:
        """Returns whether a file belongs to the copy; those of checkpoints may not."""
        is_own = self._reads and not self.has_checkpoints
        return is_own or not _step_of(name)

    def push(self) -> None:
        """Writes what has changed since it was read or written last.

        Nothing of a copy that is not up to date yet, which may be older than what is stored.
        """
        if not self._is_ready:
            return
        now = {name: self._entry(name) for name in copies.list_files(self.folder)}
        here = {n: e for n, e in now.items() if e is not None and self._is_pushed(n)}
        changed = [n for n, e in here.items() if self._known.get(n) != e]
        waves: dict[int, list[str]] = {}
        for name in changed:
            waves.setdefault(_rank(name), []).append(name)
        for rank in sorted(waves):
            store.upload(self.address, self.folder, sorted(waves[rank]))
        gone = self._known.keys() - here.keys()
        store.delete(self.address, sorted(filter(_is_replaced, gone)))
        self._known = here

    def _entry(self, name: str) -> store.Entry | None:
        return store.Entry.of_file(self.folder / name)

    def _is_pushed(self, name: str) -> bool:
        """Returns whether a file is stored: not a lock, nor what is still being written."""
        parts = PurePosixPath(name).parts
        is_whole = not any(p.startswith(".") or _UNFINISHED in p for p in parts)
        is_own = name != LOCK and parts[0] != TIMING
        return is_whole and is_own and self._is_copied(name)

    def settle(self) -> None:
        """Marks the files as up to date, for the next command that opens the copy."""
        for name, entry in store.list_objects(self.address).items():
            known = self._known.get(name)
            if known and known.size == entry.size and self._entry(name) == known:
                os.utime(self.folder / name, ns=(entry.stamp, entry.stamp))


def _step_of(name: str) -> str:
    """Returns the folder of the checkpoint that a file is of; "" of other files."""
    parts = PurePosixPath(name).parts
    for depth, part in enumerate(parts[:-1]):
        if part in _CHECKPOINTS:
            return "/".join(parts[: depth + 2])
    return ""


def _is_replaced(name: str) -> bool:
    """Returns whether a run deletes such files; others are gone by somebody's mistake."""
    return not _REPLACED.isdisjoint(PurePosixPath(name).parts)


def _rank(name: str) -> int:
    last = PurePosixPath(name).name
    return _MARKS.index(last) + 1 if last in _MARKS else 0


@contextlib.contextmanager
def open_address(
    address: Address, *, is_writer: bool, reads_checkpoints: bool
) -> Iterator[Path]:
    """Yields the local copy of a workdir on remote storage; in the end it is written back.

    Raises UserError where the storage cannot be read or written; then nothing is left here
    of a workdir that was not here before.
    """
    with _hold_free_folder(address) as folder:
        workdir = Workdir(
            address, folder, is_writer=is_writer, reads_checkpoints=reads_checkpoints
        )
        was_there = workdir.folder.exists()
        _open.append(workdir)
        try:
            workdir.open()
            yield workdir.folder
        except BaseException:
            with contextlib.suppress(UserError):  # the first error is said
                _finish(workdir)
            raise
        else:
            _finish(workdir)
        finally:
            _open.remove(workdir)
            if not was_there and not workdir._known:
                shutil.rmtree(workdir.folder, ignore_errors=True)


def _finish(workdir: Workdir) -> None:
    if workdir.is_writer:
        workdir.push()
        workdir.settle()


@contextlib.contextmanager
def _hold_free_folder(address: Address) -> Iterator[Path]:
    """Yields the first folder of copies where no other process has this workdir open."""
    root = caches.user_folder(addresses.WORKDIRS)
    (root / "locks").mkdir(parents=True, exist_ok=True)
    for number in range(10**6):
        with (root / "locks" / f"{address.digest}-{number}").open("ab") as file:
            if file_locks.attempt(file) is not False:
                yield root / str(number)
                return


def lock_file(workdir: Path) -> Path:
    """Returns the file that says that a run is in a workdir.

    Of a workdir on remote storage it is one for all copies on this machine.
    """
    for one in _open:
        if one.folder == workdir:
            locks = caches.user_folder(addresses.WORKDIRS) / "locks"
            return locks / f"{one.address.digest}.json"
    return workdir / LOCK


def is_open() -> bool:
    """Returns whether this process has a workdir on remote storage."""
    return bool(_open)


def push() -> None:
    """Writes what has changed in the workdirs that are open; nothing for local ones."""
    for one in _open:
        if one.is_writer:
            one.push()


def pull() -> None:
    """Reads what process 0 has pushed; nothing there, and for local workdirs."""
    for one in _open:
        if not one.is_writer:
            one.pull()


def direct(folder: Path) -> Any:
    """Returns the epath.Path where Orbax writes the checkpoints of a folder.

    It is `folder` itself, unless that is in a workdir on a storage that Orbax writes to.
    """
    for one in _open:
        if one.has_checkpoints and folder.is_relative_to(one.folder):
            from etils import epath

            inside = folder.relative_to(one.folder)
            if inside.parts[0] != TIMING:
                return epath.Path(str(one.address)) / inside
    return folder


def copies_checkpoints(folder: Path) -> bool:
    """Returns whether checkpoints in a folder are written there, and then copied."""
    return any(
        not one.has_checkpoints and folder.is_relative_to(one.folder) for one in _open
    )
