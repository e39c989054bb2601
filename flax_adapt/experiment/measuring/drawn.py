"""The labelled examples of an evaluation, drawn several times.

Where the subset of an evaluation has draw "each_seed", kNN and probes have `evaluate.draws`
sets of labels: those of the stages' seeds 0, 1, ... The features of all of them are
computed once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flax_adapt import data
from flax_adapt.base.errors import UserError
from flax_adapt.data import source, subset
from flax_adapt.evals.features import Features
from flax_adapt.stage import draws


class DrawnExamples(NamedTuple):
    """Examples of several draws, each once, and their rows in every draw (int64 [m])."""

    examples: data.Examples
    rows: tuple[np.ndarray, ...]


def count_draws(section: Any) -> int:
    """Returns how many draws of labels an evaluation has.

    Raises UserError for less than one, and for numbers of shots below one.
    """
    if section.draws < 1 or section.shot_draws < 1 or min(section.shots, default=1) < 1:
        raise UserError(
            f"evaluate: draws={section.draws}, shot_draws={section.shot_draws} and each of "
            f"shots={section.shots} must be at least 1"
        )
    few = draws.has_few_labels(draws.change_fields(section, data=section.train))
    is_drawn = few and section.train.subset.draw == "each_seed"
    return int(section.draws) if is_drawn else 1


def open_drawn(config_data: Any, count: int) -> DrawnExamples:
    """Opens the examples of a data section in its first `count` draws."""
    subsets = [draws.draw_labels(config_data, seed).subset for seed in range(count)]
    examples = data.open_examples(draws.join_draws(config_data, range(count)), "")
    if all(one == subsets[0] for one in subsets):
        return DrawnExamples(examples, (np.arange(len(examples)),) * count)
    opened = source.open_source(config_data)
    rows = [subset.PARTS[one.part](opened, one) for one in subsets]
    union = np.unique(np.concatenate(rows))
    return DrawnExamples(examples, tuple(np.searchsorted(union, one) for one in rows))


def take(features: Features, rows: np.ndarray) -> Features:
    """Returns the features of the examples `rows`; those that were not decoded are absent."""
    chosen = np.isin(features.indices, rows)
    return Features(*(column[chosen] for column in features))


def choose_rows(count: int, most: int) -> np.ndarray:
    """Returns int64 [m], `most` of `count` rows at most, drawn, the same ones always.

    The first rows of a folder are of its first classes alone.
    """
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def split_halves(labels_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of two halves of every class, every other example (int64)."""
    is_second = np.zeros(len(labels_n), bool)
    for label in np.unique(labels_n):
        is_second[np.flatnonzero(labels_n == label)[1::2]] = True
    return np.flatnonzero(~is_second), np.flatnonzero(is_second)


def names_of(examples: data.Examples, features: Features) -> np.ndarray:
    """Returns str [n], the name of each example that has features."""
    names: Sequence[str] = examples.names
    return np.array([names[int(row)] for row in features.indices])
