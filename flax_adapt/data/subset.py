"""Fewer labels: k examples a class, or a fraction of each class, seeded."""

import numpy as np
from ml_collections import ConfigDict

from flax_adapt import errors
from flax_adapt.data.base import UNLABELLED, Source


def select(source: Source, config_subset: ConfigDict) -> Source:
    """The chosen examples, or the rest, in the order of the source."""
    part = errors.choose("data.subset.part", config_subset.part, PARTS)
    _check(config_subset)
    if config_subset.per_class == 0 and config_subset.fraction == 1.0:
        rows = part(np.arange(len(source)), len(source))
    else:
        rows = part(chosen_rows(source, config_subset), len(source))
    if not len(rows):
        raise errors.UserError(
            f"data.subset leaves no example of {source.where} in"
            f" part={config_subset.part!r}; set per_class or fraction"
        )
    return source if len(rows) == len(source) else source.take(rows)


def chosen_rows(source: Source, config_subset: ConfigDict) -> np.ndarray:
    """int64 [m], sorted. Unlabelled examples are one more class, but have no k; all
    examples are one class where labels are numbers.

    Of every class, `fraction` of its examples (rounded, at least one) and of those
    `per_class`. More of either keeps what fewer chose: with one seed, 10 labels a class
    are among the 20.
    """
    if config_subset.per_class:
        _check_counts(source, config_subset)
    labels = source.labels
    if labels.dtype.kind == "f":
        labels = np.full(len(source), UNLABELLED)
    rows = [
        _draw(np.flatnonzero(labels == label), int(label), config_subset)
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(rows))


def _draw(rows: np.ndarray, label: int, config_subset: ConfigDict) -> np.ndarray:
    count = _share(len(rows), config_subset)
    if config_subset.per_class:
        count = 0 if label == UNLABELLED else min(count, config_subset.per_class)
    # A class draws alone: its choice stays when another class changes.
    rng = np.random.default_rng([config_subset.seed, label + 1])
    return rng.permutation(rows)[:count]


def _share(count: int, config_subset: ConfigDict) -> int:
    """`fraction` of a class of `count`, rounded; at least one of those there are."""
    return min(count, max(1, int(config_subset.fraction * count + 0.5)))


def _check(config_subset: ConfigDict) -> None:
    if config_subset.per_class < 0 or not 0 < config_subset.fraction <= 1:
        raise errors.UserError(
            f"data.subset.per_class={config_subset.per_class} must be 0 (off) or more"
            f" and fraction={config_subset.fraction} in (0, 1]"
        )
    if config_subset.seed < 0:
        raise errors.UserError(f"data.subset.seed={config_subset.seed} must be >= 0")


def _check_counts(source: Source, config_subset: ConfigDict) -> None:
    """Every class must have its k examples."""
    wanted, labels = config_subset.per_class, source.labels
    if labels.dtype.kind == "f":
        raise errors.UserError(
            f"data.subset.per_class={wanted}: the labels of {source.where} are numbers,"
            " not classes; use fraction"
        )
    if np.all(labels == UNLABELLED):
        raise errors.UserError(
            f"data.subset.per_class={wanted}: {source.where} has no labels;"
            " use fraction, or labels"
        )
    for label, name in enumerate(source.class_names):
        count = _share(int(np.sum(labels == label)), config_subset)
        if count < wanted:
            raise errors.UserError(
                f"data.subset.per_class={wanted}: class {name!r} of {source.where}"
                f" has only {count} examples (fraction={config_subset.fraction})"
            )


def _rest(rows: np.ndarray, count: int) -> np.ndarray:
    return np.setdiff1d(np.arange(count), rows)


PARTS = {"chosen": lambda rows, count: rows, "rest": _rest}
