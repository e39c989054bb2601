"""Measures of weights that no experiment of ours made: `flax-adapt eval --init`.

Each of them reads the examples in its own way: its image size and pixel statistics or its
tokenizer, and the pooling of its library. Verdicts pair the examples by their names.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flax_adapt import defaults, models, weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.data import subset
from flax_adapt.data.source import keep_open
from flax_adapt.experiment import measure as measures
from flax_adapt.experiment.measuring import drawn, verdicts
from flax_adapt.stage.draws import change_fields

REST, FIFTH = "rest", "fifth"
log = logging.getLogger(__name__)


class Weights(NamedTuple):
    """Weights to measure: their name, their folder or file, and how that is read.

    options: of `weights.source_options`.
    """

    name: str
    path: Path
    options: dict[str, Any]


def make_evaluation(
    section: ConfigDict, test_split: str, per_class: int, **fields: Any
) -> ConfigDict:
    """Returns the section `evaluate` of a data set.

    section: data with labels. test_split: a split of the same source; REST: what
    `per_class` examples of each class leave; FIFTH: a fifth of each class. Raises
    UserError for REST without `per_class`, and FIFTH with it.
    """
    if (test_split == REST and per_class < 1) or (test_split == FIFTH and per_class):
        raise UserError(
            f"--test_split={test_split} and --per_class={per_class} do not fit: 'rest' is "
            "what --per_class=NUMBER leaves, 'fifth' is a fifth of all labels"
        )
    chosen = defaults.few(per_class, "each_seed" if per_class else "fixed")
    train, test = chosen, {**chosen, "part": "rest"}
    if test_split == FIFTH:
        train, test = {**chosen, "part": "fit"}, {**chosen, "part": "held_out"}
    tested = change_fields(section, subset=ConfigDict(test))
    if test_split not in (REST, FIFTH):
        whole = ConfigDict(defaults.ALL)
        tested = change_fields(section, subset=whole, split=test_split)
    labelled = change_fields(section, subset=ConfigDict(train))
    evaluation = ConfigDict(defaults.evaluate(labelled, tested, **fields))
    evaluation.knn_k = min(evaluation.knn_k, len(subset.open_chosen(labelled)))
    return evaluation


def measure(
    measured: Sequence[Weights],
    open_evaluation: Callable[[Weights], ConfigDict],
    precision: str,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[str, ...]]:
    """Returns (a row for each of the weights, verdicts against the first, `Measured.notes`).

    open_evaluation: returns the section `evaluate` of the same examples, as the weights read
    them. Without labels a row has RankMe alone. Raises UserError where some weights read
    images and others texts.
    """
    _check_modality(measured)
    sections = [open_evaluation(one) for one in measured]
    _say_differences(measured, sections)
    config = ConfigDict(dict(init="", seed=0, precision=precision, stages=()))
    with keep_open():
        found = [
            measures.measure_models(config, section, [measures.Model(*one)])
            for one, section in zip(measured, sections, strict=True)
        ]
    rows = [
        {"weights": one.name, **each.rows[0]}
        for one, each in zip(measured, found, strict=True)
    ]
    answers = [one.on_target[0] for one in found]
    known = [one for one in answers if one is not None]
    runs = [(one.name, 0) for one in measured]
    if len({*runs}) < len(runs):  # weights against themselves
        runs[-1] = (f"{measured[-1].name}, again", 0)
    where = (sections[0].test.source, verdicts.TARGET)
    is_drawn = drawn.count_draws(sections[0]) > 1
    entries = verdicts.compare(runs, known, *where, is_drawn=is_drawn) if known else []
    return rows, verdicts.join_finetuned(config, entries, ()), found[0].notes


def _check_modality(measured: Sequence[Weights]) -> None:
    read = [_modality(one) for one in measured]
    if len({*read}) > 1:
        said = " and ".join(
            f"{one.name} reads {modality}s"
            for one, modality in zip(measured, read, strict=True)
        )
        raise UserError(f"{said}: they cannot be compared on the same examples")


def _modality(one: Weights) -> str:
    kind = weights.model_config(one.path, **one.options)["kind"]
    return str(models.TASKS[kind]["encoder"].modality)


def _say_differences(
    measured: Sequence[Weights], sections: Sequence[ConfigDict]
) -> None:
    """Logs in what the weights read the examples in another way than the first of them."""
    read = [
        {**configs.plain(section.test), "pooling": _pooling(one, section)}
        for one, section in zip(measured, sections, strict=True)
    ]
    for one, how in zip(measured[1:], read[1:], strict=True):
        if unlike := configs.difference(read[0], how):
            names = (measured[0].name, one.name)
            log.info("%s -> %s, as each reads: %s", *names, "; ".join(unlike))


def _pooling(one: Weights, section: ConfigDict) -> str:
    return weights.resolve_pooling(section.pooling, one.path, **one.options)
