"""Files of a folder: its splits, what lies below them, what stands beside a typing error."""

import logging
import os
import pathlib
from collections.abc import Iterator, Set

from flax_adapt.base import errors

SPLITS = frozenset(("train", "test", "val", "validation", "valid", "dev"))


def split_folders(root: pathlib.Path, split: str) -> dict[str, pathlib.Path]:
    """Every split of `root`, the asked one among them; {"train": root} without any."""
    folders = {
        child.name: child
        for child in sorted(root.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    }
    # Train/ and TEST/ are splits too, but an exact name wins.
    named = {name.lower(): folder for name, folder in folders.items()} | folders
    found = {name: named[name] for name in named if name in SPLITS | {split}}
    if split in found:
        beside = sorted(set(folders.values()) - set(found.values()))
        if beside:
            logging.warning("%s: not a split, so not read: %s", root, beside)
        return found
    if found:
        raise errors.UserError(
            f"data.split={split!r}: {root} has no such folder; it has {sorted(found)}"
        )
    if split != "train":
        raise errors.UserError(
            f"data.split={split!r}: {root} has no split folder (one of"
            f" {sorted(SPLITS)}), so all of it is 'train'; hold some out with"
            " data.subset and part='rest'"
        )
    return {"train": root}


def below(root: pathlib.Path, endings: Set[str]) -> list[pathlib.PurePath]:
    """Files so ending at any depth, relative to `root`, sorted as POSIX strings."""
    return sorted(_walk(root, endings), key=lambda file: file.as_posix())


def _walk(root: pathlib.Path, endings: Set[str]) -> Iterator[pathlib.PurePath]:
    for folder, children, files in os.walk(root, onerror=_unreadable, followlinks=True):
        children[:] = [name for name in children if not _skipped(folder, name)]
        for name in files:
            # A leading dot also covers the ._* files that macOS leaves behind.
            if not name.startswith(".") and ending(name) in endings:
                yield pathlib.Path(folder, name).relative_to(root)


def _unreadable(error: OSError) -> None:
    raise errors.UserError(f"data.source: cannot list {error.filename}: {error}")


def _skipped(folder: str, child: str) -> bool:
    """Hidden, or a link back to a folder it lies in, which would never end."""
    path = os.path.join(folder, child)
    here, there = os.path.realpath(folder), os.path.realpath(path)
    loops = os.path.islink(path) and os.path.commonpath((here, there)) == there
    return child.startswith(".") or loops


def ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def beside(path: pathlib.Path, kinds: str) -> str:
    """What there is in the nearest folder that exists: most mistakes are typing.

    `kinds` is "folders", or "files" to list those too.
    """
    parent = next((p for p in path.absolute().parents if p.is_dir()), None)
    if parent is None:
        return "nor any folder above it"
    names = sorted(p.name for p in parent.iterdir() if kinds == "files" or p.is_dir())
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{parent} has {names[:20]}{more}"
