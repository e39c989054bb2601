"""Opens the data of an evaluation section."""

from typing import Any, NamedTuple

from flax_adapt import data
from flax_adapt.base import checks
from flax_adapt.base.checks import Row
from flax_adapt.base.errors import UserError
from flax_adapt.data import classes
from flax_adapt.experiment.measuring import drawn
from flax_adapt.experiment.measuring.drawn import DrawnExamples


class Sets(NamedTuple):
    """The opened data of an evaluation section.

    train: None if there are no classes, so that no accuracy is measured. source: None if
    no drift is measured.
    """

    train: DrawnExamples | None
    test: DrawnExamples
    source: data.Examples | None


def open_sets(config: Any, section: Any) -> Sets:
    """Returns the opened data; raises UserError where they cannot be measured."""
    if section.models_at_once < 1:
        raise UserError(
            f"evaluate.models_at_once={section.models_at_once} must be at least 1"
        )
    if section.source is not None:
        checks.run(_VIEW_ROWS, section)
    try:
        count = drawn.count_draws(section)
        test = drawn.open_drawn(section.test, count)
        has_classes = bool(test.examples.class_names)
        train = drawn.open_drawn(section.train, count) if has_classes else None
    except UserError as error:
        raise UserError(
            f"eval needs the data of the config's `evaluate`: {error}"
        ) from None
    if (count := len(test.examples)) < 2:
        raise UserError(
            f"eval needs two test examples or more; {section.test.source} "
            f"{section.test.split} has {count}"
        )
    if train is not None:
        classes.check_several(train.examples)
        classes.check_same(train.examples, test.examples)
    if section.source is not None:
        return Sets(train, test, data.open_examples(section.source, ""))
    # Weights alone (`measuring.checkpoints`) have RankMe at least.
    if train is None and config.stages:
        raise UserError(
            f"eval measures kNN and a linear probe by class, but {section.test.source} "
            "has no classes; give evaluate.source to measure drift alone"
        )
    return Sets(train, test, None)


# Rules of an evaluation section that measures drift: there must be two views of an example.
_VIEW_ROWS = (
    Row(
        lambda it: it.test.modality != "image" or len(it.test.views) == 2,
        "evaluate.test.views must be two augmentations, whose alignment is measured",
    ),
    Row(
        lambda it: it.test.modality == "image" or it.view_dropout > 0,
        "evaluate.view_dropout must be above 0: the two views of a text differ by it",
    ),
)
