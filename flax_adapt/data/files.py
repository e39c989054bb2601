"""Lists the splits and files of a data folder, and describes wrong paths for messages.

Folders that other programs leave behind are never read: hidden ones (`.git`,
`.ipynb_checkpoints`, `.thumbnails`) and those of IGNORED_FOLDERS. A warning names what is not
read, once.
"""

import collections
import functools
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

from flax_adapt.base import errors

log = logging.getLogger(__name__)

SPLITS = frozenset(("train", "test", "val", "validation", "valid", "dev"))
# Names that people give splits, besides: Training, TestSet, eval_images. Folders are taken
# for splits by these only where all of them are named so.
_LIKE_SPLITS = re.compile(
    r"(train|test|val|valid|dev|eval)(ing|ation|uation|s|[-_ ]?(set|data|images|split))?"
)
# Lower case: of network drives, archives, recycle bins, repaired disks, Python.
IGNORED_FOLDERS = frozenset(
    ("@eadir", "@recycle", "#recycle", "#snapshot", "__macosx", "__pycache__")
) | {"lost+found", "system volume information", "$recycle.bin"}


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning the first time: the same folder is opened for many stages."""
    log.warning("%s", text)


def is_ignored(name: str) -> bool:
    """Returns whether a folder is hidden or was made by another program."""
    return name.startswith(".") or name.lower() in IGNORED_FOLDERS


def list_folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders directly in `root` that are read, sorted by name."""
    children = sorted(child for child in root.iterdir() if child.is_dir())
    return [child for child in children if not is_ignored(child.name)]


def find_split_folders(root: pathlib.Path, split: str) -> dict[str, pathlib.Path]:
    """Returns {split: folder} of `root`; {"train": root} where it has no split folder.

    Raises UserError where `split` is not among them.
    """
    folders = list_folders(root)
    found = find_named_splits({folder.name: folder for folder in folders}, split)
    others = [folder.name for folder in folders if folder not in found.values()]
    if split in found:
        if others:
            warn_once(f"{root}: not a split, so not read: {others}")
        return found
    if found:
        beside_them = f", and beside it {list_few(others)}" if others else ""
        there = sorted({folder.name for folder in found.values()})
        raise errors.UserError(
            f"data.split={split!r}: {root} has no such folder; it has"
            f" {there}{beside_them}: give one of these names as the split"
        )
    if split != "train":
        raise errors.UserError(
            f"data.split={split!r}: {root} has no split folder (one of"
            f" {sorted(SPLITS)}), so all of it is 'train'; hold some out with"
            " data.subset and part='rest'"
        )
    return {"train": root}


def find_named_splits(
    paths: dict[str, pathlib.Path], split: str
) -> dict[str, pathlib.Path]:
    """Returns those of {name: path} that are named as a split, or as `split`.

    Train and TEST are splits, too, but an exact name wins.
    """
    named = {name.lower(): path for name, path in paths.items()} | paths
    named_so: Set[str] = SPLITS
    if paths and all(_LIKE_SPLITS.fullmatch(name.lower()) for name in paths):
        named_so = SPLITS | {*paths}
    return {name: path for name, path in named.items() if name in named_so | {split}}


class Listing(NamedTuple):
    """The files that are read, relative to their folder, as sorted POSIX paths.

    unread: other contents of the folder, for messages; "" where there are none.
    """

    paths: list[str]
    unread: str


def list_files(root: pathlib.Path, endings: Set[str]) -> Listing:
    """Lists the files at any depth below `root` that end in one of `endings`."""
    found: list[str] = []
    others: collections.Counter[str] = collections.Counter()
    ignored: set[str] = set()
    for folder, children, names in _walk(root):
        ignored |= {child for child in children if is_ignored(child)}
        prefix = folder.relative_to(root).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        # A leading dot also covers the ._* files that macOS leaves behind.
        for name in (name for name in names if not name.startswith(".")):
            if ending_of(name) in endings:
                found.append(prefix + name)
            else:
                others[ending_of(name) or "without an ending"] += 1
    read = {file.partition("/")[0] for file in found}
    barren = [child.name for child in list_folders(root) if child.name not in read]
    unread = _describe_unread(endings, others, barren, sorted(ignored))
    return Listing(sorted(found), unread)


def _describe_unread(
    endings: Set[str],
    others: "collections.Counter[str]",
    barren: list[str],
    ignored: list[str],
) -> str:
    parts = []
    if others:
        counts = ", ".join(f"{count} {name}" for name, count in others.most_common(6))
        parts.append(f"files of other endings ({counts}; read are {sorted(endings)})")
    if barren:
        parts.append(f"the folders {list_few(barren)}, which hold no file that is read")
    if ignored:
        parts.append(f"{list_few(ignored)}, which other programs leave behind")
    return "; ".join(parts)


def list_few(names: Sequence[str]) -> str:
    """Returns up to ten names and the number of the others, for messages."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{list(names[:10])}{more}"


def _walk(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, list[str], list[str]]]:
    """Yields (folder, its folders, its files); ignored folders are named, but not entered."""
    for folder, children, names in os.walk(root, onerror=_refuse, followlinks=True):
        here = pathlib.Path(folder)
        yield here, list(children), names
        children[:] = [
            child
            for child in children
            if not is_ignored(child) and not _loops(folder, child)
        ]


def _refuse(error: OSError) -> None:
    raise errors.UserError(f"data.source: cannot list {error.filename}: {error}")


def _loops(folder: str, child: str) -> bool:
    """Returns whether `child` is a link to a folder that contains it: an endless walk."""
    path = os.path.join(folder, child)
    here, there = os.path.realpath(folder), os.path.realpath(path)
    return os.path.islink(path) and os.path.commonpath((here, there)) == there


def ending_of(name: str) -> str:
    """Returns the ending of a file name in lower case, such as ".png"."""
    return os.path.splitext(name)[1].lower()


def first_word(name: str) -> str:
    """The first word of a file's name: "train" of `train-00000-of-00002.parquet`."""
    return re.split(r"[-_. ]", name)[0]


def check_file(scheme: str, path: str, file: pathlib.Path) -> None:
    """Raises UserError unless there is a file; `scheme:path` is the source as typed."""
    if not file.is_file():
        raise errors.UserError(
            f"data.source='{scheme}:{path}': there is no such file or folder;"
            f" {describe_neighbours(file, 'files')}"
        )


def describe_neighbours(path: pathlib.Path, kinds: str) -> str:
    """What there is in the nearest folder that exists: most mistakes are typing.

    kinds: "folders", or "files" to list those, too.
    """
    parent = next((p for p in path.absolute().parents if p.is_dir()), None)
    if parent is None:
        return "nor any folder above it"
    shown = [p.name for p in parent.iterdir() if kinds == "files" or p.is_dir()]
    names = sorted(name for name in shown if not is_ignored(name))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{parent} has {names[:20]}{more}"
