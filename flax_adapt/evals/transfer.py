"""Figures of a transfer matrix: how a sequence of tasks changed accuracies on domains.

R[t, d] is the accuracy on domain d of the model after t tasks, fine-tuned on d or probed;
R[0] is that of the initial weights. Task t learns domain t - 1, so the first T columns
are the domains that were learnt, in order; the columns after them were never learnt.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flax_adapt.base.errors import UserError


def figures(matrix: np.ndarray) -> dict[str, float]:
    """Returns the figures of float [1 + T, D], D >= T >= 1; without unit, as R.

    average_learnt  mean of the last row over the learnt domains (Lopez-Paz and Ranzato
                    2017, equation 2: the usual average accuracy)
    average_all     mean of the last row over all domains, also those never learnt (ours)
    start_learnt, start_all  the same two means of the first row
    forgetting      mean over all learnt domains but the last of how much their best row
                    between the first and the last exceeds the last row (Chaudhry et al.
                    2018, equation 3); below 0 where the last is the best
    backward        mean over the same of R[T, d] - R[d + 1, d]: the change of a domain by
                    the tasks after it (Lopez-Paz and Ranzato, equation 3)
    forward         mean over all learnt domains but the first of R[d, d] - R[0, d], before
                    they are learnt (there equation 4; ours: compared with the initial
                    weights, not with chance)

    A last row (.8, .6, .1) after two tasks: average_learnt .7, average_all .5. Two tasks
    and two domains, R = ((.5, .4), (.8, .5), (.7, .9)): averages .8, starts .45,
    forgetting .1, backward -.1, forward .1. Raises UserError for a matrix of other shape.
    """
    rows, columns = np.shape(matrix)
    tasks = rows - 1
    if not 1 <= tasks <= columns:
        raise UserError(
            f"a transfer matrix of {rows} rows and {columns} columns must have a row for "
            "the start and for each task, and a column for each task's domain"
        )
    matrix, last = np.asarray(matrix, np.float64), np.asarray(matrix, np.float64)[-1]
    found = {
        f"{name}_{which}": row[:count].mean()
        for name, row in (("average", last), ("start", matrix[0]))
        for which, count in (("learnt", tasks), ("all", columns))
    }
    before = range(tasks - 1)
    if before:
        best = matrix[1:-1].max(axis=0)
        found["forgetting"] = np.mean([best[d] - last[d] for d in before])
        found["backward"] = np.mean([last[d] - matrix[d + 1, d] for d in before])
        ahead = range(1, tasks)
        found["forward"] = np.mean([matrix[d, d] - matrix[0, d] for d in ahead])
    return {name: float(value) for name, value in found.items()}


def table(
    rows: Sequence[str], columns: Sequence[str], matrix: np.ndarray
) -> list[dict[str, Any]]:
    """Returns one dict for each row of the matrix, to be printed: cells and their mean."""
    return [
        {"model": name, **dict(zip(columns, map(float, values), strict=True)),
         "mean": float(np.mean(values))}
        for name, values in zip(rows, matrix, strict=True)
    ]  # fmt: skip
