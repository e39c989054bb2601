"""A plain folder of images.

Where PATH holds a folder named as the split, its images are the split; where PATH holds
no split folder at all, the split "train" is all of PATH. The class of an image is the
first folder below the split; images that lie directly in the split have no class, and
then none of the split has.
"""

import logging
import pathlib

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.base.paths import user_path
from flax_adapt.data import files
from flax_adapt.data.base import UNLABELLED, Source

ENDINGS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)


def open_folder(path: str, config_data: ConfigDict) -> Source:
    """Lists PATH once, sorted by name; reads no image."""
    root = user_path(path)
    if not root.is_dir():
        raise errors.UserError(
            f"data.source='folder:{path}': there is no such folder;"
            f" {files.beside(root, 'folders')}"
        )
    splits = files.split_folders(root, config_data.split)
    found = {name: files.below(folder, ENDINGS) for name, folder in splits.items()}
    chosen, where = splits[config_data.split], f"folder:{path} {config_data.split}"
    paths = found[config_data.split]
    if not paths:
        raise errors.UserError(
            f"data.source='folder:{path}': no image in {chosen};"
            f" files must end in one of {sorted(ENDINGS)}"
        )
    class_names = tuple(sorted(set().union(*map(_classes, found.values()))))
    labels = _labels(paths, class_names, where)
    prefix = chosen.relative_to(root)
    return Source(
        where=where,
        names=[(prefix / file).as_posix() for file in paths],
        class_names=class_names,
        read=lambda i: (chosen / paths[i], int(labels[i])),
        read_labels=lambda: labels,
        broken={},
    )


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
