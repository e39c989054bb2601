"""Probes on standardised features: multinomial logistic regression, and an MLP."""

import warnings

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.evals import labelled

_MLP_BATCH = 200  # scikit-learn's own


def accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    l2: float,
    max_iterations: int,
) -> float:
    """Returns the accuracy of a linear probe on test rows (float [m, D], int [m]).

    The probe minimises mean cross-entropy + l2 / 2 * |weights|^2 on the training rows.
    Raises UserError for missing labels, fewer than two classes, and an l2 of 0 or below.
    """
    from sklearn.linear_model import LogisticRegression

    sets = (train_features, train_labels, test_features, test_labels)
    train, test = _check_inputs(*sets, l2=l2)
    # scikit-learn minimises C * (sum of cross-entropy) + |weights|^2 / 2.
    probe = LogisticRegression(C=1 / (l2 * len(train_labels)), max_iter=max_iterations)
    return float(probe.fit(train, train_labels).score(test, test_labels))


def mlp_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    hidden: int,
    l2: float,
    max_iterations: int,
    seed: int,
) -> float:
    """Returns the accuracy of a probe with one hidden layer (ReLU, Adam), else as `accuracy`.

    How much better it is than the linear probe shows how far classes are from linearly
    separable. It is trained for `max_iterations` epochs at most, from weights that `seed`
    draws.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    sets = (train_features, train_labels, test_features, test_labels)
    train, test = _check_inputs(*sets, l2=l2)
    batch_size = min(_MLP_BATCH, len(train_labels))
    # scikit-learn adds alpha / 2 * |weights|^2 / batch_size to the mean cross-entropy.
    probe = MLPClassifier(
        (hidden,),
        alpha=l2 * batch_size,
        batch_size=batch_size,
        max_iter=max_iterations,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Reaching the maximum of epochs is intended.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train, train_labels)
    return float(probe.score(test, test_labels))


def _check_inputs(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    l2: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets of features, standardised; raises UserError as `accuracy` does."""
    labelled.check(train_features, train_labels, "the training examples")
    labelled.check(test_features, test_labels, "the test examples")
    if len(np.unique(train_labels)) < 2:
        raise UserError("a probe needs training examples of two classes or more")
    if l2 <= 0:
        raise UserError(f"a probe's l2={l2} must be above 0")
    return standardise(train_features, test_features)


def standardise(
    train_features: np.ndarray, test_features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets, standardised by the mean and variance of the training set alone.

    This is the reference's BatchNorm without affine before the head, eps 1e-6 (MAE,
    main_linprobe.py): without it, features of small scale make a probe look bad.
    """
    train = np.asarray(train_features, np.float64)
    mean, scale = train.mean(axis=0), np.sqrt(train.var(axis=0) + 1e-6)
    return (train - mean) / scale, (np.asarray(test_features) - mean) / scale
