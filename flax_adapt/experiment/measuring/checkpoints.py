"""Measures of weights that no experiment of ours made: `flax-adapt eval --init`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flax_adapt import defaults, weights
from flax_adapt.base.errors import UserError
from flax_adapt.data import subset
from flax_adapt.experiment import measure as measures
from flax_adapt.experiment.measuring import verdicts
from flax_adapt.stage.draws import change_fields

REST, FIFTH = "rest", "fifth"


class Weights(NamedTuple):
    """Weights to measure: their name, their folder or file, and how that is read.

    options: of `weights.source_options`; {}: as the file says.
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
    measured: Sequence[Weights], evaluation: ConfigDict, precision: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[str, ...]]:
    """Returns (a row for each of the weights, verdicts against the first, `Measured.notes`).

    Without labels a row has RankMe alone. Raises UserError where the weights read other
    inputs.
    """
    _check_inputs(measured)
    config = ConfigDict(dict(init="", seed=0, precision=precision, stages=()))
    ways = [measures.Model(one.name, one.path, one.options) for one in measured]
    found = measures.measure_models(config, evaluation, ways)
    rows = [
        {"weights": one.name, **row}
        for one, row in zip(measured, found.rows, strict=True)
    ]
    return rows, verdicts.join_finetuned(config, found.entries, ()), found.notes


# Fields of a model config that say what it reads.
_READS = ("kind", "image_size", "channels", "vocab_size")


def _check_inputs(measured: Sequence[Weights]) -> None:
    first, *others = (weights.model_config(one.path, **one.options) for one in measured)
    for name, other in zip((one.name for one in measured[1:]), others, strict=True):
        unlike = [field for field in _READS if first.get(field) != other.get(field)]
        if unlike:
            said = ", ".join(
                f"{field} {first.get(field)} and {other.get(field)}" for field in unlike
            )
            raise UserError(
                f"{measured[0].name} and {name} read other inputs, so that they cannot be "
                f"compared on the same examples: {said}"
            )
