"""The predictions of a stage on its evaluation data, example by example: predictions.npz.

They are written by every evaluation, so that they are those of the last one. A verdict
(`evals.verdict`) compares those of two stages.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from flax_adapt.base import logs, metrics
from flax_adapt.base.errors import UserError

FILE = "predictions.npz"


class Predictions(NamedTuple):
    """What a model says about N test examples, in the order of their source."""

    names: np.ndarray  # str [N], those of the source
    labels: np.ndarray  # int32 [N], or float32 where labels are numbers
    guesses: np.ndarray  # as labels
    losses: np.ndarray  # float32 [N]


def of_metric(names: Sequence[str], found: metrics.Predictions) -> Predictions:
    """Returns the predictions that an evaluation has summed; names: of all its examples.

    Examples of weight 0, which could not be decoded, are left out.
    """
    counts = np.asarray(found.weights_B) > 0
    rows = np.asarray(found.indices_B)[counts].astype(np.int64)
    order = np.argsort(rows, kind="stable")
    kind = np.int32 if found.classes else np.float32
    columns = (found.labels_B, found.guesses_B)
    labels, guesses = (np.asarray(c)[counts][order].astype(kind) for c in columns)
    losses = np.asarray(found.losses_B, np.float32)[counts][order]
    return Predictions(np.asarray(names)[rows[order]], labels, guesses, losses)


def write(folder: Path, predictions: Predictions) -> None:
    """Writes predictions.npz into a stage's folder, whole or not at all; process 0 alone."""
    if jax.process_index():
        return
    with logs.replace_file(folder / FILE) as file:
        np.savez_compressed(file, **predictions._asdict())


def read(folder: Path) -> Predictions | None:
    """Returns the predictions of a stage; None where an earlier version kept none.

    Raises UserError for a damaged file.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as stored:
            return Predictions(*(stored[name] for name in Predictions._fields))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it; the verdict is then left out"
        ) from None
