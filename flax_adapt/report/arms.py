"""The two arms that the report looks at closely: what they say about each test example."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.report.outcomes import shade
from flax_adapt.report.workdir import Run, read_optional
from flax_adapt.stage.predictions import Predictions

# The most classes that a phone can show as a matrix; of more, the worst mistakes are listed.
MOST_CLASSES = 20
MOST_MISTAKES = 12
# How many classes with the largest changes are shown, and examples of each kind.
MOST_CHANGES = 24


class Pair(NamedTuple):
    """Two arms of classifiers with their predictions by seed; `before` may be missing."""

    before: str
    after: str
    first: Mapping[int, Predictions]
    second: Mapping[int, Predictions]
    class_names: tuple[str, ...]


def choose_pair(run: Run) -> Pair | None:
    """Returns the two arms of the verdict that the best arm has a part in.

    Of verdicts on weights, where there are such; of two with the same best arm the one with
    the larger difference. Without a verdict it is the last stage that kept predictions,
    alone. None where none did, or where labels are numbers.
    """
    judged = [row for row in run.rows if "verdict" in row]
    judged = [row for row in judged if "weights" in row["verdict"]] or judged
    before, first = "", {}
    if judged:
        best = max(judged, key=lambda row: _rank(run, row["verdict"], row["stage"]))
        before, after = best["verdict"]["against"], best["stage"]
        first = run.predictions(before)
    else:
        kept = [name for name in run.names if run.predictions(name)]
        after = kept[-1] if kept else ""
    second = run.predictions(after) if after else {}
    if not second:
        return None
    some = next(iter(second.values()))
    if not np.issubdtype(some.labels.dtype, np.integer):
        return None
    return Pair(before, after, first, second, _find_class_names(run, after, some))


def _rank(run: Run, found: Mapping[str, Any], stage: str) -> tuple[float, float]:
    """Returns how good the better arm of a verdict is, and the difference of the two."""
    against = next(row for row in run.rows if row["stage"] == found["against"])
    mean = next(row for row in run.rows if row["stage"] == stage)["mean"]
    rises = (mean - against["mean"]) * found["difference"] >= 0  # not so of a loss
    ends = (mean, against["mean"])
    return (max(ends) if rises else -min(ends)), found["difference"]


def _find_class_names(run: Run, name: str, some: Predictions) -> tuple[str, ...]:
    for folder in run.seed_folders(name).values():
        known = read_optional(folder / "eval_data.json") or {}
        if known.get("class_names"):
            return tuple(known["class_names"])
    return tuple(map(str, range(1 + int(max(some.labels.max(), some.guesses.max())))))


def count_confusions(found: Mapping[int, Predictions], classes: int) -> np.ndarray:
    """Returns int64 [C, C]: how often a label (row) was taken for a class, over all seeds."""
    counts = np.zeros((classes, classes), np.int64)
    for one in found.values():
        np.add.at(counts, (one.labels, one.guesses), 1)
    return counts


def confusion(run: Run) -> dict[str, Any] | None:
    """Returns the confusion matrix of the better arm; of many classes the worst mistakes."""
    pair = choose_pair(run)
    if pair is None:
        return None
    names = pair.class_names
    counts = count_confusions(pair.second, len(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(names) > MOST_CLASSES:
        return {"stage": pair.after, "mistakes": _list_mistakes(counts, shares, names)}
    rows = [
        {
            "name": names[i],
            "cells": [
                {
                    **shade(1.0 if i == j else -1.0, 1.0),
                    **dict(interval="", word=""),
                    "strength": round(0.75 * float(shares[i, j]), 3),
                    "text": f"{100 * shares[i, j]:.0f}" if counts[i, j] else "",
                }
                for j in range(len(names))
            ],
        }
        for i in range(len(names))
    ]
    return {"stage": pair.after, "columns": names, "rows": rows, "mistakes": []}


def _list_mistakes(
    counts: np.ndarray, shares: np.ndarray, names: tuple[str, ...]
) -> list[dict[str, str]]:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_MISTAKES]
    places = [divmod(int(place), len(names)) for place in order]
    return [
        {"label": names[i], "guess": names[j], "share": f"{100 * shares[i, j]:.0f} %"}
        for i, j in places
        if wrong[i, j]
    ]


def class_changes(run: Run) -> dict[str, Any] | None:
    """Returns the share that each class has right before and after, largest change first."""
    pair = choose_pair(run)
    if pair is None or not pair.first:
        return None
    counts = [
        count_confusions(arm, len(pair.class_names))
        for arm in (pair.first, pair.second)
    ]
    totals = [np.maximum(one.sum(axis=1), 1) for one in counts]
    before_C, after_C = (
        np.diag(one) / total for one, total in zip(counts, totals, strict=True)
    )
    tested_C = counts[1].sum(axis=1)
    change_C = after_C - before_C
    order = np.argsort(-np.abs(change_C), kind="stable")
    rows = [
        {
            "name": pair.class_names[c],
            "count": int(tested_C[c]) // len(pair.second),
            "before": round(100 * float(before_C[c]), 1),
            "after": round(100 * float(after_C[c]), 1),
            "change": f"{100 * change_C[c]:+.1f}",
            "tone": shade(float(change_C[c]), 1.0)["tone"] if change_C[c] else "open",
        }
        for c in order[:MOST_CHANGES]
        if tested_C[c]
    ]
    left_out = max(0, int((tested_C > 0).sum()) - len(rows))
    ends = dict(before=pair.before, after=pair.after, left_out=left_out)
    return {"rows": rows, **ends}
