"""Minimises multinomial logistic regression: mean cross-entropy + l2 / 2 * |kernel|^2.

L-BFGS (SciPy) in float64, in the principal axes of the features, each in units of its
curvature: tens of iterations, where features of pretrained models otherwise take hundreds
(ours).
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_EPS = 1e-6  # of the batch norm before a probe (He et al. 2022, main_linprobe.py)
# Iterations in the units of one curvature, how often new ones follow, and SciPy's status then.
_ROUND, _ROUNDS, _INTERRUPTED = 60, 100, 1
# Matrix products of fewer multiplications take one thread: a thousand of them, on threads that
# wait for each other, took minutes on a busy machine (measured), and a second on one.
_LARGE = 2**24
_LEAST = 1e-6  # of the curvature of the bias, which no penalty bounds


class Rows(NamedTuple):
    """Standardised features in their principal axes: (x - mean) / scale = x_nr @ basis_rD.

    The optimal kernel is a linear combination of the rows: with fewer rows than features
    the search is in their span. power_r: mean square of each column of x_nr.
    """

    x_nr: np.ndarray
    basis_rD: np.ndarray
    power_r: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    def transform(self, x_nD: np.ndarray) -> np.ndarray:
        """Returns other features [m, D] in the same axes [m, r]."""
        return standardise(x_nD, self.mean, self.variance) @ self.basis_rD.T


def standardise(x_nD: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Returns features [n, D] as BatchNorm without affine has them, in float64."""
    return (np.asarray(x_nD, np.float64) - mean) / np.sqrt(variance + _EPS)


@contextlib.contextmanager
def limit_threads(multiplications: int) -> Iterator[None]:
    """Gives NumPy one thread while matrix products are small; multiplications: of one of them."""
    if multiplications >= _LARGE:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def reduce_rows(x_nD: np.ndarray) -> Rows:
    """Returns features [n, D], standardised and in at most min(n, D) principal axes."""
    x_nD = np.asarray(x_nD, np.float64)
    mean, variance = x_nD.mean(axis=0), x_nD.var(axis=0)
    x_nD = standardise(x_nD, mean, variance)
    if len(x_nD) < x_nD.shape[1]:
        u_nr, size_r, basis_rD = np.linalg.svd(x_nD, full_matrices=False)
        power_r = size_r**2 / len(x_nD)
        return Rows(u_nr * size_r, basis_rD, power_r, mean, variance)
    power_r, axes_Dr = np.linalg.eigh(x_nD.T @ x_nD / len(x_nD))
    power_r = np.maximum(power_r, 0.0)
    return Rows(x_nD @ axes_Dr, axes_Dr.T, power_r, mean, variance)


def _log_predict(x_nr: np.ndarray, weights_r1N: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the probability of every class, [n, N]."""
    logits = x_nr @ weights_r1N[:-1] + weights_r1N[-1]
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def cross_entropy(
    x_nr: np.ndarray, labels_n: np.ndarray, weights_r1N: np.ndarray
) -> tuple[float, np.ndarray]:
    """Returns the mean loss, and its gradient (p - y) / n with respect to the logits."""
    rows, log_p = np.arange(len(x_nr)), _log_predict(x_nr, weights_r1N)
    error = np.exp(log_p)
    error[rows, labels_n] -= 1
    return -log_p[rows, labels_n].mean(), error / len(x_nr)


def minimise(
    rows: Rows,
    labels_n: np.ndarray,
    start: np.ndarray,
    l2: float,
    tolerances: dict[str, float],
) -> np.ndarray:
    """Returns weights [r + 1, N], the bias last, from initial weights `start`.

    After every _ROUND iterations the units are those of the curvature that is reached.
    """
    from scipy.optimize import minimize

    weights, options = start, dict(maxiter=_ROUND, **tolerances)

    def value(flat: np.ndarray, unit: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape) * unit
        loss, error = cross_entropy(rows.x_nr, labels_n, weights)
        slope = np.concatenate([rows.x_nr.T @ error, error.sum(axis=0, keepdims=True)])
        slope[:-1] += l2 * weights[:-1]
        loss += l2 / 2 * np.sum(weights[:-1] ** 2)
        return loss, (slope * unit).ravel()

    for _ in range(_ROUNDS):
        unit = _measure_units(rows, weights, l2)
        found = minimize(
            value,
            (weights / unit).ravel(),
            args=(unit,),
            jac=True,
            method="L-BFGS-B",
            options=options,
        )
        weights = found.x.reshape(start.shape) * unit
        if found.status != _INTERRUPTED:
            break
    return weights


def _measure_units(rows: Rows, weights_r1N: np.ndarray, l2: float) -> np.ndarray:
    """Returns the unit of every axis and of the bias, [r + 1, 1]: 1 / sqrt(curvature).

    The curvature of an axis is its power times the mean of p (1 - p), plus l2; that of the
    bias this mean.
    """
    p_nN = np.exp(_log_predict(rows.x_nr, weights_r1N))
    spread = np.mean(p_nN * (1 - p_nN))
    curvature = np.append(rows.power_r * spread + l2, max(spread, _LEAST))
    return 1 / np.sqrt(curvature)[:, None]
