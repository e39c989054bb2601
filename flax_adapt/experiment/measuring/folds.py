"""Parts of labelled examples that are held out in turn."""

import numpy as np


def number_folds(labels_n: np.ndarray, folds: int) -> np.ndarray:
    """Returns int64 [n], the fold of each example; -1: never held out, alone in its class."""
    numbers, begun = np.full(len(labels_n), -1), 0
    for label in np.unique(labels_n):
        rows = np.random.default_rng([0, int(label) + 1]).permutation(
            np.flatnonzero(labels_n == label)
        )
        if len(rows) > 1:
            numbers[rows] = (begun + np.arange(len(rows))) % folds
            begun += len(rows)
    return numbers
