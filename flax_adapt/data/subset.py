"""Takes a subset of a source: k examples a class, or a fraction of each class, by a seed."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import config as configs
from flax_adapt.base import errors
from flax_adapt.data import source as sources
from flax_adapt.data.base import UNLABELLED, Source

# Share of each class that is held out to choose a learning rate (ours).
HELD_OUT = 0.2
# The largest share of each class that a stage holds out to watch a metric (ours).
WATCHED = 0.1
# Values of `draw`: every seed of a stage has a subset of its own, or all have the same.
DRAWS = ("each_seed", "fixed")


# Section of `name_examples` -> identities of its chosen examples.
Identities: TypeAlias = dict[str, frozenset[str]]
# Parts of one draw that share no example.
_APART = (
    {"chosen", "rest"},
    {"fit", "rest"},
    {"held_out", "rest"},
    {"fit", "held_out"},
)


def open_chosen(config_data: ConfigDict) -> Source:
    """Returns the chosen examples of a data section's source, undecoded; see `select`.

    Raises UserError for a source that cannot be read.
    """
    return select(sources.open_source(config_data), config_data.subset)


def name_examples(config_data: ConfigDict) -> str:
    """Returns a text that is the same for data sections with the same examples."""
    fields = ("modality", "source", "split", "data_dir", "subset")
    plain = configs.plain(config_data)
    return repr({name: plain[name] for name in fields})


def list_identities(config_data: ConfigDict, known: Identities) -> frozenset[str]:
    """Returns `Source.identities` of the chosen examples, which `known` then has."""
    name = name_examples(config_data)
    if name not in known:
        known[name] = frozenset(open_chosen(config_data).identities())
    return known[name]


def list_shared(
    one: ConfigDict, other: ConfigDict, known: Identities
) -> frozenset[str]:
    """Returns the identities of the chosen examples that two data sections share.

    Nothing is opened where they cannot share any. known: calls that share it read each
    section once.
    """
    if not sources.may_share(one, other) or _are_parts(one, other):
        return frozenset()
    return list_identities(one, known) & list_identities(other, known)


def _are_parts(one: ConfigDict, other: ConfigDict) -> bool:
    """Returns whether two data sections are parts of one draw that share no example."""
    parts = {one.subset.part, other.subset.part}
    same = [
        name_examples(ConfigDict({**x, "subset": {**x.subset, "part": ""}}))
        for x in (one, other)
    ]
    return parts in _APART and same[0] == same[1]


def select(source: Source, config_subset: ConfigDict) -> Source:
    """Returns a part of the source, see PARTS, in the order of the source.

    Raises UserError for a wrong section, and for a part without examples.
    """
    part = errors.choose("data.subset.part", config_subset.part, PARTS)
    _check(config_subset)
    rows = part(source, config_subset)
    if not len(rows):
        raise errors.UserError(
            f"data.subset leaves no example of {source.where} in"
            f" part={config_subset.part!r}; set per_class or fraction (to hold examples"
            " out takes two of a class)"
        )
    return source if len(rows) == len(source) else source.take(rows)


def chosen_rows(
    source: Source, config_subset: ConfigDict, held_out: float = 0.0
) -> np.ndarray:
    """Returns the rows of the chosen examples, int64 [m], sorted.

    They are `fraction` of every class (rounded, at least one example), and of those
    `per_class`. Unlabelled examples are one more class, of which `per_class` chooses none.
    Where labels are numbers, all examples are one class. Larger values keep the choice of
    smaller ones: with one seed the 10 examples of a class are among the 20. held_out: the
    share of each class that is taken away again (rounded; at least one example, never all).
    """
    everything = config_subset.per_class == 0 and config_subset.fraction == 1.0
    if everything and not held_out:
        return np.arange(len(source))
    if config_subset.per_class:
        _check_counts(source, config_subset)
    labels = source.labels
    if labels.dtype.kind == "f":
        labels = np.full(len(source), UNLABELLED)
    rows = [
        _draw_rows(np.flatnonzero(labels == label), int(label), config_subset, held_out)
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(rows))


def _draw_rows(
    rows: np.ndarray, label: int, config_subset: ConfigDict, held_out: float
) -> np.ndarray:
    count = _count_of_fraction(len(rows), config_subset)
    if config_subset.per_class:
        count = 0 if label == UNLABELLED else min(count, config_subset.per_class)
    if held_out and count:
        count -= min(count - 1, max(1, int(held_out * count + 0.5)))
    # Each class has a stream of its own, so that other classes do not change its choice.
    rng = np.random.default_rng([config_subset.seed, label + 1])
    return rng.permutation(rows)[:count]


def _count_of_fraction(count: int, config_subset: ConfigDict) -> int:
    """Returns the rounded `fraction` of `count` examples; at least one, if there is one."""
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
    """Raises UserError unless every class has at least `per_class` examples."""
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
        count = _count_of_fraction(int(np.sum(labels == label)), config_subset)
        if count < wanted:
            raise errors.UserError(
                f"data.subset.per_class={wanted}: class {name!r} of {source.where}"
                f" has only {count} examples (fraction={config_subset.fraction})"
            )


def _rest_rows(source: Source, config_subset: ConfigDict) -> np.ndarray:
    return np.setdiff1d(np.arange(len(source)), chosen_rows(source, config_subset))


def _fit_rows(source: Source, config_subset: ConfigDict) -> np.ndarray:
    return chosen_rows(source, config_subset, HELD_OUT)


def _held_out_rows(source: Source, config_subset: ConfigDict) -> np.ndarray:
    return np.setdiff1d(
        chosen_rows(source, config_subset), _fit_rows(source, config_subset)
    )


def _rows_without_names(source: Source, config_subset: ConfigDict) -> np.ndarray:
    """Returns the rows of the subset section `base` without the examples `names`."""
    base = config_subset.base
    rows, names = PARTS[base.part](source, base), set(config_subset.names)
    return np.array([row for row in rows if source.names[row] not in names], np.int64)


def _rows_of_any(source: Source, config_subset: ConfigDict) -> np.ndarray:
    """Returns the rows that one of the subset sections `of` has."""
    rows = [PARTS[one.part](source, one) for one in config_subset.of]
    return np.unique(np.concatenate(rows))


def _rows_without_data(source: Source, config_subset: ConfigDict) -> np.ndarray:
    """Returns the rows of the subset section `base` but the examples of the sections `of`.

    These are data sections that may share examples, see `sources.may_share`.
    """
    base, known = config_subset.base, set()
    for section in config_subset.of:
        known |= {*select(sources.open_source(section), section.subset).identities()}
    rows, mine = PARTS[base.part](source, base), source.identities()
    return np.array([row for row in rows if mine[row] not in known], np.int64)


def _watched_rows(source: Source, config_subset: ConfigDict) -> np.ndarray:
    """Returns the rows of the subset section `base` that are held out to watch a metric.

    They are a share WATCHED of each class (at least one example, never all), and about
    `examples` at most. Examples without a class are one class.
    """
    base = config_subset.base
    rows = PARTS[base.part](source, base)
    labels = source.labels[rows]
    if labels.dtype.kind == "f":
        labels = np.full(len(rows), UNLABELLED)
    share = min(WATCHED, config_subset.examples / max(1, len(rows)))
    held = []
    for label in np.unique(labels):
        mine = rows[labels == label]
        count = min(len(mine) - 1, max(1, int(share * len(mine) + 0.5)))
        # Neither the stream of `_draw_rows`, whose first rows are "fit", nor another seed's.
        rng = np.random.default_rng([config_subset.seed, int(label) + 1, 1])
        held.append(rng.permutation(mine)[:count])
    return np.sort(np.concatenate(held)) if held else rows


def _rows_without_watched(source: Source, config_subset: ConfigDict) -> np.ndarray:
    base = config_subset.base
    watched = _watched_rows(source, config_subset)
    return np.setdiff1d(PARTS[base.part](source, base), watched)


def _first_rows(source: Source, config_subset: ConfigDict) -> np.ndarray:
    """Returns the first `count` rows of the subset section `base`."""
    base = config_subset.base
    return PARTS[base.part](source, base)[: config_subset.count]


# "chosen" consists of "fit" and "held_out". "without", "any" and "without_data" have fields
# of their own, which a sweep (`experiment.held_out`), an evaluation with several draws of
# labels and the argument `pool` (`defaults.settings`) write; "watched" and its complement
# those of `stage.watch`; "first" is what `experiment.timing` trains on.
PARTS: dict[str, Callable[[Source, ConfigDict], np.ndarray]] = {
    "chosen": chosen_rows,
    "rest": _rest_rows,
    "fit": _fit_rows,
    "held_out": _held_out_rows,
    "without": _rows_without_names,
    "any": _rows_of_any,
    "without_data": _rows_without_data,
    "watched": _watched_rows,
    "without_watched": _rows_without_watched,
    "first": _first_rows,
}
