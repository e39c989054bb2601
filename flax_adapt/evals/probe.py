"""Probes on standardised features: multinomial logistic regression, and an MLP."""

import warnings
from typing import NamedTuple

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.evals import labelled
from flax_adapt.train import linear, logistic

_MLP_BATCH = 200  # scikit-learn's own
# The least probability of a label in a loss; of one that no training row has it is 0.
_LEAST = 1e-12


class ProbeResult(NamedTuple):
    """Accuracy of a linear probe on the test rows, and the L2 penalty it was fitted with."""

    accuracy: float
    l2: float


class ProbeAnswers(NamedTuple):
    """What a linear probe says about m test rows, and the L2 penalty it was fitted with."""

    guesses: np.ndarray  # int [m], labels
    losses: np.ndarray  # float64 [m], cross-entropy in nats
    l2: float


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    l2: float,
    folds: int,
    seed: int,
) -> ProbeResult:
    """Returns the accuracy of a linear probe on test rows (float [m, D], int [m]).

    The probe minimises mean cross-entropy + l2 / 2 * |weights|^2 on the training rows, and is
    solved exactly (`train.linear`). l2 = 0: chosen by the loss on training labels that are
    held out, each of `folds` parts once; `seed` draws the parts. Raises UserError for missing
    labels, fewer than two classes, an l2 below 0, and fewer than two folds.
    """
    sets = (train_features, train_labels, test_features, test_labels)
    found = predict(*sets, l2=l2, folds=folds, seed=seed)
    return ProbeResult(float(np.mean(found.guesses == test_labels)), found.l2)


def predict(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    l2: float,
    folds: int,
    seed: int,
) -> ProbeAnswers:
    """Returns the answers of `linear_probe` row by row; raises the same errors."""
    _check_inputs(train_features, train_labels, test_features, test_labels)
    if not (0 <= l2 < np.inf and folds >= 2):
        raise UserError(
            f"evaluate: probe_l2={l2} must be above 0, or 0: chosen on held-out labels; "
            f"probe_folds={folds} at least 2"
        )
    # Labels that no training row has would have weights without a limit.
    names, label_n = np.unique(train_labels, return_inverse=True)
    given = (train_features, label_n, len(names))
    if l2 == 0:
        l2 = linear.choose_logged(*given, folds=folds, seed=seed)
    logits_mN = linear.solve(*given, l2).logits(test_features)
    guesses = names[logits_mN.argmax(axis=1)]
    return ProbeAnswers(guesses, _losses(logits_mN, names, test_labels), l2)


def _losses(
    logits_mN: np.ndarray, names: np.ndarray, labels_m: np.ndarray
) -> np.ndarray:
    """Returns the cross-entropy of each row; names: the label of each column, sorted."""
    logits_mN = logits_mN - logits_mN.max(axis=1, keepdims=True)
    p_mN = np.exp(logits_mN)
    p_mN /= p_mN.sum(axis=1, keepdims=True)
    is_label_mN = names == np.asarray(labels_m)[:, None]
    return -np.log(np.maximum((p_mN * is_label_mN).sum(axis=1), _LEAST))


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
    """Returns the accuracy of a probe with one hidden layer (ReLU, Adam) on test rows.

    Features and labels are as those of `linear_probe`, which raises the same errors.

    How much better it is than the linear probe shows how far classes are from linearly
    separable. It is trained for `max_iterations` epochs at most, from weights that `seed`
    draws.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    _check_inputs(train_features, train_labels, test_features, test_labels)
    train, test = standardise(train_features, test_features)
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
) -> None:
    labelled.check(train_features, train_labels, "the training examples")
    labelled.check(test_features, test_labels, "the test examples")
    if len(np.unique(train_labels)) < 2:
        raise UserError("a probe needs training examples of two classes or more")


def standardise(
    train_features: np.ndarray, test_features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets, standardised by the mean and variance of the training set alone.

    This is the reference's BatchNorm without affine before the head, eps 1e-6 (MAE,
    main_linprobe.py): without it, features of small scale make a probe look bad.
    """
    train = np.asarray(train_features, np.float64)
    of_train = train.mean(axis=0), train.var(axis=0)
    return (
        logistic.standardise(train, *of_train),
        logistic.standardise(test_features, *of_train),
    )
