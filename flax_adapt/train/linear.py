"""A linear classifier of features, solved exactly: multinomial logistic regression.

The loss is minimised by L-BFGS (SciPy) in float64, so that the result does not depend on a
learning rate, a number of epochs or initial weights. The L2 penalty is chosen by the loss on
held-out examples.
"""

import logging
import math
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.base.checks import Check, Row, present

# The L2 penalties that are tried first; if the best is the first or last, further ones are.
PENALTIES = tuple(10.0**power for power in range(-5, 2))
_LIMITS = (1e-9, 1e5)
# The L2 penalty where no class has two examples, so that none can be held out: that of the
# probe of `flax-adapt eval` (ours).
PENALTY = 1e-3
_EPS = 1e-6  # of the batch norm before a probe (He et al. 2022, main_linprobe.py)
log = logging.getLogger(__name__)


class Solved(NamedTuple):
    """A linear head on standardised features: logits = (x - mean) / scale @ kernel + bias.

    mean, variance [D]: of the training features. kernel [D, N], bias [N]. All are float64.
    l2: the penalty on the kernel. loss: mean cross-entropy in nats of the training examples.
    """

    mean: np.ndarray
    variance: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    loss: float

    def logits(self, x_nD: np.ndarray) -> np.ndarray:
        """Returns logits [n, N] of features [n, D]."""
        x_nD = (np.asarray(x_nD, np.float64) - self.mean) / np.sqrt(
            self.variance + _EPS
        )
        return x_nD @ self.kernel + self.bias


# Rules of a section `optim.solve`.
ROWS = (
    Row(
        lambda solve: 0 <= solve.l2 < math.inf and solve.folds >= 2,
        "optim.solve: l2={0.l2} must be above 0, or 0: chosen on held-out labels; folds="
        "{0.folds} at least 2",
    ),
)
_WITHOUT = ("replay", "ema", "sweep", "fisher")


def _list_conflicts(section: Any) -> list[str]:
    """Returns the sections of a stage that would train more than its head, or try rates."""
    conflicts = [name for name in _WITHOUT if section[name] is not None]
    return conflicts + ["penalties"] * bool(section.penalties)


_OF_A_HEAD = (
    Row(
        lambda section: section.num_steps == 1,
        "optim.solve is a solution in one step: num_steps={0.num_steps} must be 1",
    ),
    Row(
        lambda section: (
            section.objective.name == "classify" and section.model.head_norm
        ),
        "optim.solve is of a new linear head: objective {0.objective.name!r} must be "
        "'classify' and model.head_norm={0.model.head_norm} True",
    ),
    Row(
        lambda section: not _list_conflicts(section),
        lambda section: (
            "optim.solve finds the head alone: set "
            f"{', '.join(_list_conflicts(section))} to None, penalties to ()"
        ),
    ),
)
CHECKS = (
    Check(lambda at: present(at.section.optim.solve), ROWS),
    Check(
        lambda at: [] if at.section.optim.solve is None else [at.section], _OF_A_HEAD
    ),
)


def solve(
    x_nD: np.ndarray, labels_n: np.ndarray, num_classes: int, l2: float
) -> Solved:
    """Returns the head that minimises mean cross-entropy + l2 / 2 * |kernel|^2.

    x_nD: features [n, D]; labels_n: int [n], below num_classes. The bias has no penalty.
    """
    x_nD = np.asarray(x_nD, np.float64)
    mean, variance = x_nD.mean(axis=0), x_nD.var(axis=0)
    x_nD = (x_nD - mean) / np.sqrt(variance + _EPS)
    # The optimal kernel is a linear combination of the rows of x_nD: with fewer rows than
    # features the search is in their span.
    basis_rD = None
    if len(x_nD) < x_nD.shape[1]:
        u_nr, size_r, basis_rD = np.linalg.svd(x_nD, full_matrices=False)
        x_nD = u_nr * size_r
    kernel, bias, loss = _minimise(x_nD, np.asarray(labels_n), num_classes, l2)
    if basis_rD is not None:
        kernel = basis_rD.T @ kernel
    return Solved(mean, variance, kernel, bias, l2, loss)


def _minimise(
    x_nD: np.ndarray, labels_n: np.ndarray, num_classes: int, l2: float
) -> tuple[np.ndarray, np.ndarray, float]:
    from scipy.optimize import minimize

    (count, width), rows = x_nD.shape, np.arange(len(x_nD))

    def cross_entropy(weights_D1N: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the mean loss, and its gradient (p - y) / n with respect to the logits."""
        logits = x_nD @ weights_D1N[:-1] + weights_D1N[-1]
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        error = np.exp(log_p)
        error[rows, labels_n] -= 1
        return -log_p[rows, labels_n].mean(), error / count

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(width + 1, num_classes)
        loss, error = cross_entropy(weights)
        slope = np.concatenate([x_nD.T @ error, error.sum(axis=0, keepdims=True)])
        slope[:-1] += l2 * weights[:-1]
        return loss + l2 / 2 * np.sum(weights[:-1] ** 2), slope.ravel()

    start = np.zeros((width + 1) * num_classes)
    options = dict(maxiter=5_000, maxfun=50_000, ftol=1e-12, gtol=1e-7)
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=options)
    weights = found.x.reshape(width + 1, num_classes)
    return weights[:-1], weights[-1], float(cross_entropy(weights)[0])


def choose_penalty(
    x_nD: np.ndarray,
    labels_n: np.ndarray,
    num_classes: int,
    *,
    folds: int = 5,
    seed: int = 0,
) -> tuple[float, dict[float, float]]:
    """Returns (the best l2, {l2: loss on held-out examples}), by cross-validation.

    x_nD: features [n, D]; labels_n: int [n]. The rows are split into at most `folds` parts,
    stratified by class, each of which is held out once. Where the best of PENALTIES is the
    first or the last, further ones are tried until it is not. Where no class has two
    examples the result is (PENALTY, {}).
    """
    labels_n = np.asarray(labels_n)
    part_n = _parts(labels_n, folds, seed)
    if part_n is None:
        return PENALTY, {}
    tried: dict[float, float] = {}
    wanted = list(PENALTIES)
    while wanted:
        for l2 in wanted:
            tried[l2] = _held_out_loss(x_nD, labels_n, num_classes, part_n, l2)
        best = min(tried, key=lambda l2: tried[l2])
        wanted = _beyond(best, sorted(tried))
    return best, tried


def _beyond(best: float, tried: list[float]) -> list[float]:
    """Returns [the next penalty] where the best is the first or last so far, else []."""
    step = {tried[0]: 0.1, tried[-1]: 10.0}.get(best)
    further = [] if step is None else [float(f"{best * step:.0e}")]
    return [l2 for l2 in further if _LIMITS[0] <= l2 <= _LIMITS[1]]


def _parts(labels_n: np.ndarray, folds: int, seed: int) -> np.ndarray | None:
    """Returns the part of every row, int64 [n]; None where no class has two rows."""
    most = np.bincount(labels_n).max()
    if most < 2:
        return None
    rng, part_n = np.random.default_rng(seed), np.zeros(len(labels_n), np.int64)
    for label in np.unique(labels_n):
        rows = rng.permutation(np.flatnonzero(labels_n == label))
        # Small classes do not all begin with the same part.
        part_n[rows] = (np.arange(len(rows)) + rng.integers(folds)) % min(folds, most)
    return part_n


def _held_out_loss(
    x_nD: np.ndarray,
    labels_n: np.ndarray,
    num_classes: int,
    part_n: np.ndarray,
    l2: float,
) -> float:
    """Returns the mean cross-entropy of held-out rows, without classes new to the fit."""
    losses = []
    for part in np.unique(part_n):
        fits = part_n != part
        head = solve(x_nD[fits], labels_n[fits], num_classes, l2)
        held_out = ~fits & np.isin(labels_n, labels_n[fits])
        logits = head.logits(x_nD[held_out])
        logits -= logits.max(axis=1, keepdims=True)
        own = logits[np.arange(len(logits)), labels_n[held_out]]
        losses.append(np.log(np.exp(logits).sum(axis=1)) - own)
    return float(np.mean(np.concatenate(losses)))


def fit(
    x_nD: np.ndarray,
    labels_n: np.ndarray,
    num_classes: int,
    config: Any,
    *,
    seed: int = 0,
) -> Solved:
    """Returns the head fitted to all rows.

    `config`: section `optim.solve`, l2 (0: chosen by `choose_penalty`) and folds.
    """
    l2 = config.l2
    if l2 == 0:
        data = (x_nD, labels_n, num_classes)
        l2, tried = choose_penalty(*data, folds=config.folds, seed=seed)
        said = ", ".join(f"{one:g}: {tried[one]:.4f}" for one in sorted(tried))
        log.info("l2 %g, by the loss on held-out labels (%s)", l2, said or "none")
    return solve(x_nD, labels_n, num_classes, l2)
