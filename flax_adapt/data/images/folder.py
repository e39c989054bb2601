"""A folder of image files as a source.

Where PATH holds a folder named as the split, its images are the split; where PATH holds
no split folder at all, the split "train" is all of PATH. The class of an image is the
first folder below the split. A split whose images all lie directly in it has no classes,
and one with class folders and images beside them is an error, unless `data.label_field` is
"", which asks for no labels.
"""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.base.paths import user_path
from flax_adapt.data import files
from flax_adapt.data.base import UNLABELLED, Source
from flax_adapt.data.images import arrays, image

ENDINGS = arrays.ENDINGS | image.ENDINGS
_HEIF = frozenset((".heic", ".heif"))


def read_endings() -> frozenset[str]:
    """The endings of image files that can be read here."""
    return ENDINGS | (_HEIF if image.HEIF in image.formats() else frozenset())


def open_folder(path: str, config_data: ConfigDict) -> Source:
    """Returns the source of a folder, sorted by name; reads no image.

    Raises UserError where there is no such folder, no such split or no image.
    """
    root = user_path(path)
    if not root.is_dir():
        raise errors.UserError(
            f"data.source='folder:{path}': there is no such folder;"
            f" {files.describe_neighbours(root, 'folders')}"
        )
    splits = files.find_split_folders(root, config_data.split)
    endings = read_endings()
    found = {name: files.list_files(child, endings) for name, child in splits.items()}
    chosen, where = splits[config_data.split], f"folder:{path} {config_data.split}"
    paths, unread = found[config_data.split]
    if not paths:
        there = f"; there are only {unread}" if unread else ""
        raise errors.UserError(
            f"data.source='folder:{path}': no image in {chosen};"
            f" files must end in one of {sorted(endings)}{there}"
        )
    _check_split_is_no_class(path, root, splits, found)
    for name, listing in found.items():
        if listing.unread:
            files.warn_once(f"{splits[name]}: not read: {listing.unread}")
    class_names: tuple[str, ...] = ()
    if config_data.label_field:
        of_all = (_classes(listing.paths) for listing in found.values())
        class_names = tuple(sorted(set().union(*of_all)))
        _check_strays(paths, where)
    labels = _labels(paths, class_names)
    prefix = chosen.relative_to(root).as_posix()
    # Only these names are kept in memory, and the labels.
    names = paths if prefix == "." else [f"{prefix}/{file}" for file in paths]
    return Source(
        where=where,
        names=names,
        class_names=class_names,
        read=lambda i: (root / names[i], int(labels[i])),
        read_labels=lambda: labels,
        broken={},
    )


def _check_split_is_no_class(
    path: str,
    root: pathlib.Path,
    splits: dict[str, pathlib.Path],
    found: dict[str, files.Listing],
) -> None:
    """Raises UserError where the only split folder may be a class, such as trains in VOC.

    Such a folder `train`, `test` or `val` holds images and has siblings with images.
    """
    (name, folder), *more = splits.items()
    siblings = [child.name for child in files.list_folders(root) if child != folder]
    if more or folder == root or _classes(found[name].paths):
        return
    alike = [
        child
        for child in siblings
        if any(
            files.ending_of(file.name) in read_endings()
            for file in (root / child).iterdir()
        )
    ]
    if alike:
        raise errors.UserError(
            f"data.source='folder:{path}': {folder.name!r} holds images, no class"
            f" folders, and so do {files.list_few(alike)} beside it: if it is a class, put"
            f" all classes in a folder {name}/{name}, {name}/{alike[0]}, ...; if it is"
            f" the split, name it itself: folder:{path.rstrip('/')}/{folder.name}"
        )


def describe_nesting(config_data: ConfigDict) -> str:
    """Returns the end of a message about a single class: folders that may be the classes.

    They are a level below that single class; "" where there are none.
    """
    scheme, _, path = config_data.source.partition(":")
    root = user_path(path)
    if scheme != "folder" or not root.is_dir():
        return ""
    folder = files.find_split_folders(root, config_data.split)[config_data.split]
    for child in files.list_folders(folder):
        inner = [grandchild.name for grandchild in files.list_folders(child)]
        if inner:
            kind = "splits" if files.SPLITS & {*map(str.lower, inner)} else "folders"
            meant = pathlib.PurePath(path) / child.relative_to(root)
            return f"; {child} holds the {kind} {files.list_few(inner)}: is folder:{meant} meant?"
    return ""


def _classes(paths: list[str]) -> set[str]:
    """The folders directly below the split; none where any image lies outside them."""
    if any("/" not in file for file in paths):
        return set()
    return {file.partition("/")[0] for file in paths}


def _check_strays(paths: list[str], where: str) -> None:
    """Raises UserError for images beside class folders, which have no class."""
    outside = [file for file in paths if "/" not in file]
    if outside and len(outside) < len(paths):
        raise errors.UserError(
            f"{where}: {len(outside)} of {len(paths)} images lie in no class folder: "
            f"{files.list_few(outside)}; put them in one, or take them out; "
            "data.label_field='' reads all images without labels"
        )


def _labels(paths: list[str], class_names: tuple[str, ...]) -> np.ndarray:
    """int32 [n]: rows of class_names, or all -1."""
    if not class_names or any("/" not in file for file in paths):
        return np.full(len(paths), UNLABELLED, np.int32)
    row = {name: i for i, name in enumerate(class_names)}
    return np.array([row[file.partition("/")[0]] for file in paths], np.int32)
