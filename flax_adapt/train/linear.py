"""A linear classifier of features, solved exactly: multinomial logistic regression.

The loss is minimised by L-BFGS in float64 (`logistic`), so that the result does not depend on
a learning rate, a number of epochs or initial weights. The L2 penalty is chosen by the loss on
held-out examples.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.base.checks import Check, Row, present
from flax_adapt.train import logistic

# L2 penalties are tried from FIRST on, in factors of ten, until the held-out loss rises.
FIRST, LIMITS = 10.0, (1e-9, 1e5)
# The L2 penalty where no class has two examples, so that none can be held out (ours).
PENALTY = 1e-3
_EXACT, _TO_CHOOSE = dict(ftol=1e-12, gtol=1e-7), dict(ftol=1e-9, gtol=1e-5)
_MANY = 2_000  # rows of which one part is enough to choose by
log = logging.getLogger(__name__)


class LinearSolution(NamedTuple):
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
        return (
            logistic.standardise(x_nD, self.mean, self.variance) @ self.kernel
            + self.bias
        )


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
) -> LinearSolution:
    """Returns the head that minimises mean cross-entropy + l2 / 2 * |kernel|^2.

    x_nD: features [n, D]; labels_n: int [n], below num_classes. The bias has no penalty.
    """
    labels_n = np.asarray(labels_n)
    with logistic.limit_threads(np.size(x_nD) * num_classes):
        rows = logistic.reduce_rows(x_nD)
        start = np.zeros((rows.x_nr.shape[1] + 1, num_classes))
        weights = logistic.minimise(rows, labels_n, start, l2, _EXACT)
        loss = float(logistic.cross_entropy(rows.x_nr, labels_n, weights)[0])
    kernel = rows.basis_rD.T @ weights[:-1]
    return LinearSolution(rows.mean, rows.variance, kernel, weights[-1], l2, loss)


class _Fold:
    """A part of the rows held out, and the head of the other rows at one l2 after another."""

    def __init__(
        self, x_nD: np.ndarray, labels_n: np.ndarray, held_out: np.ndarray, classes: int
    ):
        self.rows = logistic.reduce_rows(x_nD[~held_out])
        self.labels = labels_n[~held_out]
        # Without classes that are new to the fit.
        counts = held_out & np.isin(labels_n, self.labels)
        self.held_out = self.rows.transform(x_nD[counts])
        self.answers = labels_n[counts]
        self.weights = np.zeros((self.rows.x_nr.shape[1] + 1, classes))

    def loss(self, l2: float) -> float:
        """Returns the total cross-entropy of the rows that are held out."""
        # It starts from the solution of the penalty before, which is near.
        self.weights = logistic.minimise(
            self.rows, self.labels, self.weights, l2, _TO_CHOOSE
        )
        if not len(self.answers):
            return 0.0
        mean, _ = logistic.cross_entropy(self.held_out, self.answers, self.weights)
        return float(mean) * len(self.answers)


def choose_penalty(
    x_nD: np.ndarray,
    labels_n: np.ndarray,
    num_classes: int,
    *,
    folds: int = 5,
    seed: int = 0,
) -> tuple[float, dict[float, float]]:
    """Returns (the best l2, {l2: mean loss of held-out examples}), by cross-validation.

    x_nD: features [n, D]; labels_n: int [n]. The rows are split into at most `folds` parts,
    stratified by class, each of which is held out once; of more than 2000 rows only the
    first part is. From FIRST on penalties are tried downward in factors of ten until the
    loss rises, and upward where FIRST is better than the next, within LIMITS. Where no class
    has two examples the result is (PENALTY, {}).
    """
    labels_n = np.asarray(labels_n)
    part_n = _parts(labels_n, folds, seed)
    if part_n is None:
        return PENALTY, {}
    number = 1 if len(labels_n) > _MANY else part_n.max() + 1
    with logistic.limit_threads(np.size(x_nD) * num_classes):
        tests = [
            _Fold(np.asarray(x_nD), labels_n, part_n == part, num_classes)
            for part in range(number)
        ]
        count = sum(len(test.answers) for test in tests)
        tried = _search(lambda l2: sum(test.loss(l2) for test in tests) / count)
    return min(tried, key=lambda l2: tried[l2]), tried


def _search(loss: Callable[[float], float]) -> dict[float, float]:
    """Returns {l2: loss}: small penalties, which take longest, only while they help."""
    tried = {FIRST: loss(FIRST)}
    for factor in (0.1, 10.0):
        l2 = FIRST
        while LIMITS[0] < l2 < LIMITS[1] and tried[l2] == min(tried.values()):
            l2 = float(f"{l2 * factor:.0e}")
            tried[l2] = loss(l2)
    return tried


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


def fit(
    x_nD: np.ndarray,
    labels_n: np.ndarray,
    num_classes: int,
    config: Any,
    *,
    seed: int = 0,
) -> LinearSolution:
    """Returns the head fitted to all rows.

    `config`: section `optim.solve`, l2 (0: chosen by `choose_logged`) and folds.
    """
    data = (x_nD, labels_n, num_classes)
    l2 = config.l2 or choose_logged(*data, folds=config.folds, seed=seed)
    return solve(*data, l2)


def choose_logged(
    x_nD: np.ndarray, labels_n: np.ndarray, num_classes: int, *, folds: int, seed: int
) -> float:
    """Returns the l2 of `choose_penalty`; logs it, and warns where it is at a limit."""
    l2, tried = choose_penalty(x_nD, labels_n, num_classes, folds=folds, seed=seed)
    losses = ", ".join(f"{one:g}: {tried[one]:.4f}" for one in sorted(tried))
    log.info("l2 %g, by the loss on held-out labels (%s)", l2, losses or "none")
    if tried and l2 in LIMITS:
        log.warning(
            "the best l2 of a probe, %g, is at the edge of those that are tried, %g to %g: "
            "the optimum may lie beyond",
            *(l2, *LIMITS),
        )
    return l2
