"""A plain folder of images.

Where PATH holds a folder named as the split, its images are the split; where PATH holds
no split folder at all, the split "train" is all of PATH. The class of an image is the
first folder below the split; images that lie directly in the split have no class, and
then none of the split has.
"""

import logging
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from flax_adapt import errors
from flax_adapt.data.base import UNLABELLED, Source

ENDINGS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)
SPLITS = frozenset(("train", "test", "val", "validation", "valid", "dev"))


def open_folder(path: str, config_data: ConfigDict) -> Source:
    """Lists PATH once, sorted by name; reads no image."""
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise errors.UserError(
            f"data.source='folder:{path}': there is no such folder; {_beside(root)}"
        )
    splits = _split_folders(root, config_data.split)
    files = {name: _image_files(folder) for name, folder in splits.items()}
    chosen, where = splits[config_data.split], f"folder:{path} {config_data.split}"
    paths = files[config_data.split]
    if not paths:
        raise errors.UserError(
            f"data.source='folder:{path}': no image in {chosen};"
            f" files must end in one of {sorted(ENDINGS)}"
        )
    class_names = tuple(sorted(set().union(*map(_classes, files.values()))))
    labels = _labels(paths, class_names, where)
    prefix = chosen.relative_to(root)
    return Source(
        where=where,
        names=[(prefix / file).as_posix() for file in paths],
        class_names=class_names,
        read=lambda i: (chosen / paths[i], int(labels[i])),
        read_labels=lambda: labels,
    )


def _split_folders(root: pathlib.Path, split: str) -> dict[str, pathlib.Path]:
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
            f" {sorted(SPLITS)}), so all of it is 'train'; hold images out with"
            " data.subset and part='rest'"
        )
    return {"train": root}


def _image_files(root: pathlib.Path) -> list[pathlib.PurePath]:
    """Images below `root` at any depth, relative to it, sorted as POSIX strings."""
    return sorted(_walk(root), key=lambda file: file.as_posix())


def _walk(root: pathlib.Path) -> Iterator[pathlib.PurePath]:
    for folder, children, files in os.walk(root, onerror=_unreadable, followlinks=True):
        children[:] = [name for name in children if not _skipped(folder, name)]
        for name in files:
            # A leading dot also covers the ._* files that macOS leaves behind.
            if not name.startswith(".") and _ending(name) in ENDINGS:
                yield pathlib.Path(folder, name).relative_to(root)


def _unreadable(error: OSError) -> None:
    raise errors.UserError(f"data.source: cannot list {error.filename}: {error}")


def _skipped(folder: str, child: str) -> bool:
    """Hidden, or a link back to a folder it lies in, which would never end."""
    path = os.path.join(folder, child)
    here, there = os.path.realpath(folder), os.path.realpath(path)
    loops = os.path.islink(path) and os.path.commonpath((here, there)) == there
    return child.startswith(".") or loops


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _classes(paths: list[pathlib.PurePath]) -> set[str]:
    """The folders directly below the split; none where any image lies outside them."""
    if any(len(file.parts) == 1 for file in paths):
        return set()
    return {file.parts[0] for file in paths}


def _labels(
    paths: list[pathlib.PurePath], class_names: tuple[str, ...], where: str
) -> np.ndarray:
    """int32 [n]: rows of class_names, or all -1."""
    outside = [file for file in paths if len(file.parts) == 1]
    if outside:
        if len(outside) < len(paths):
            logging.warning(
                "%s: no labels, as %d of %d images lie in no class folder, like %s",
                *(where, len(outside), len(paths), outside[0]),
            )
        return np.full(len(paths), UNLABELLED, np.int32)
    row = {name: i for i, name in enumerate(class_names)}
    return np.array([row[file.parts[0]] for file in paths], np.int32)


def _beside(path: pathlib.Path) -> str:
    """What there is in the nearest folder that exists: most mistakes are typing."""
    parent = next((p for p in path.absolute().parents if p.is_dir()), None)
    if parent is None:
        return "nor any folder above it"
    names = sorted(p.name for p in parent.iterdir() if p.is_dir())
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{parent} has {names[:20]}{more}"
