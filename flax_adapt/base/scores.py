"""Scores of a whole test set that are not means over examples; on the host, in float64."""

from collections.abc import Callable

import numpy as np


def f1_of_classes(counts_NN: np.ndarray) -> np.ndarray:
    """Returns float64 [n]: F1 of every class with at least one example or prediction.

    counts_NN[i, j]: number of examples of class i that were predicted as j.
    """
    both_N = counts_NN.sum(axis=0) + counts_NN.sum(axis=1)
    return 2 * np.diag(counts_NN)[both_N > 0] / both_N[both_N > 0]


def macro_f1(counts_NN: np.ndarray) -> float:
    """Returns the mean of F1 over classes, as scikit-learn's; 0 where nothing was counted."""
    return float(f1_of_classes(counts_NN).mean()) if counts_NN.any() else 0.0


def micro_f1(counts_NN: np.ndarray) -> float:
    """Returns F1 of all decisions together: with one label an example, the accuracy."""
    return float(np.trace(counts_NN) / max(counts_NN.sum(), 1))


def matthews(counts_NN: np.ndarray) -> float:
    """Returns Matthews correlation (Gorodkin 2004 for many classes).

    It is 0 where all predictions are of one class.
    """
    total, true_N, taken_N = counts_NN.sum(), counts_NN.sum(1), counts_NN.sum(0)
    covariance = np.trace(counts_NN) * total - true_N @ taken_N
    scale = (total**2 - true_N @ true_N) * (total**2 - taken_N @ taken_N)
    return float(covariance / np.sqrt(scale)) if scale > 0 else 0.0


def spearman(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Returns Spearman's rank correlation of two arrays, ties at their mean rank.

    It is 0 where either array is constant.
    """
    # Imported here because it takes a while.
    from scipy import stats

    if len(targets) < 2 or np.ptp(predictions) == 0 or np.ptp(targets) == 0:
        return 0.0
    return float(stats.spearmanr(predictions, targets).statistic)


SCORES: dict[str, Callable[[np.ndarray], float]] = {
    "macro_f1": macro_f1,
    "micro_f1": micro_f1,
    "matthews": matthews,
}
