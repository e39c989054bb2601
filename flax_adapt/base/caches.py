"""Folders of files that only save time: where they lie, and how they stay within a limit."""

import contextlib
import os
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flax_adapt.base import logs

if TYPE_CHECKING:  # takes a tenth of a second
    import numpy as np


def user_folder(name: str) -> Path:
    """Returns `flax_adapt/NAME` in the user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "flax_adapt" / name


def count_bytes(files: Iterable[Path]) -> int:
    """Returns the bytes of all files together."""
    return sum(size for _, size, _ in _list_by_age(files))


def make_room(
    files: Iterable[Path], size: int, limit: int, in_use: Collection[Path] = ()
) -> bool:
    """Deletes the oldest of `files` until `size` more bytes are within `limit`.

    in_use: files that stay. Returns False, and deletes nothing, where they leave too little
    room. Raises OSError for a file that cannot be deleted.
    """
    stored = _list_by_age(files)
    excess = sum(held for _, held, _ in stored) + size - limit
    others = [entry for entry in stored if entry[2] not in in_use]
    if excess > sum(held for _, held, _ in others):
        return False
    for _, held, path in others:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= held
    return True


def _list_by_age(files: Iterable[Path]) -> list[tuple[int, int, Path]]:
    """Returns (time of the last change, bytes, path) of each file, the oldest first."""
    stored = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # another process deleted it
            found = path.stat()
            stored.append((found.st_mtime_ns, found.st_size, path))
    return sorted(stored)


def read_arrays(path: Path) -> "dict[str, np.ndarray] | None":
    """Returns the arrays of a file; None where there is none, or a damaged one."""
    import numpy as np

    try:
        # Opened here: of a damaged file NumPy would leave its own handle open.
        with open(path, "rb") as file, np.load(file) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def write_arrays(path: Path, arrays: "dict[str, np.ndarray]", limit: int) -> None:
    """Writes arrays to a file, whole or not at all; process 0 alone.

    The oldest such files of the folder are deleted, so that it holds no more than `limit`
    bytes.
    """
    import numpy as np

    size = sum(leaf.nbytes for leaf in arrays.values())
    make_room(path.parent.glob("*.npz"), size, limit)
    with logs.replace_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
