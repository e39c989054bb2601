"""A linear probe: multinomial logistic regression on standardised features."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from flax_adapt.errors import UserError
from flax_adapt.evals import labelled


def accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    l2: float,
    max_iterations: int,
) -> float:
    """Share of test rows (float [m, D], int [m]) that the probe names rightly.

    The probe minimises mean cross-entropy + l2 / 2 * |weights|^2 on the training rows.
    """
    labelled.check(train_features, train_labels, "the training examples")
    labelled.check(test_features, test_labels, "the test examples")
    if len(np.unique(train_labels)) < 2:
        raise UserError("a linear probe needs training examples of two classes or more")
    if l2 <= 0:
        raise UserError(f"a linear probe's l2={l2} must be above 0")
    train, test = standardise(train_features, test_features)
    # scikit-learn minimises C * (sum of cross-entropy) + |weights|^2 / 2.
    probe = LogisticRegression(C=1 / (l2 * len(train_labels)), max_iter=max_iterations)
    return float(probe.fit(train, train_labels).score(test, test_labels))


def standardise(
    train_features: np.ndarray, test_features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both sets by the mean and variance of the training set alone.

    This is the reference's BatchNorm without affine before the head, eps 1e-6 (MAE,
    main_linprobe.py): without it, features of small scale make a probe look bad.
    """
    train = np.asarray(train_features, np.float64)
    mean, scale = train.mean(axis=0), np.sqrt(train.var(axis=0) + 1e-6)
    return (train - mean) / scale, (np.asarray(test_features) - mean) / scale
