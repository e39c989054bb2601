"""Few-shot accuracy: the nearest class mean of 1, 5 or 10 labelled examples a class."""

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.evals import labelled


def draw(labels_n: np.ndarray, shots: int, seed: int) -> np.ndarray | None:
    """Returns rows of `shots` examples of every class, int64 [shots * classes], sorted.

    One seed has the rows of fewer shots among those of more. None where a class has fewer
    examples.
    """
    rows = []
    for label in np.unique(labels_n):
        rng = np.random.default_rng([seed, int(label)])
        mine = rng.permutation(np.flatnonzero(labels_n == label))
        if len(mine) < shots:
            return None
        rows.append(mine[:shots])
    return np.sort(np.concatenate(rows))


def predict(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray
) -> np.ndarray:
    """Returns the class whose mean is the most similar to each test row, int [m].

    Features float [n, D], [m, D] are centred by the mean of the training rows and scaled to
    norm 1, and so are the means: nothing is tuned (Wang et al. 2019, SimpleShot,
    arXiv 1911.04623, "CL2N"). In a tie it is the lowest label. Raises UserError as
    `labelled.check` does, and for fewer than two classes.
    """
    labelled.check(train_features, train_labels, "the training examples")
    names = np.unique(train_labels)
    if len(names) < 2:
        raise UserError("few-shot accuracy needs training examples of two classes")
    train = np.asarray(train_features, np.float64)
    centre = train.mean(axis=0)
    train, test = (_scale_to_unit(x - centre) for x in (train, test_features))
    means = np.stack([train[train_labels == name].mean(axis=0) for name in names])
    return names[np.argmax(test @ _scale_to_unit(means).T, axis=1)]


def _scale_to_unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)
