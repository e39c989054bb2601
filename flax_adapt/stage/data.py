"""Opens the examples of a stage, and checks that they fit its model.

CHECKS has the rules about the config alone; the functions check the opened data.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from flax_adapt import data, models, objectives
from flax_adapt.base import checks, errors
from flax_adapt.base.checks import Check, Context, Row, one_of, present
from flax_adapt.base.errors import UserError, unknown
from flax_adapt.data import classes
from flax_adapt.stage.stage import Stage

log = logging.getLogger(__name__)


class _DataUse(NamedTuple):
    """A data section that a stage trains on or is evaluated on, and its stage."""

    data: Any
    at: Context

    @property
    def task(self) -> str:
        """The task of the stage's model, a key of `models.TASKS[kind]`."""
        return objectives.task_of(self.at.section.objective)

    @property
    def modality(self) -> str:
        """The modality of the model's inputs: "image" or "text"."""
        return models.TASKS[self.at.config.model.kind][self.task].modality


def _data_uses(at: Context) -> list[_DataUse]:
    sections = [at.section.data, *(it.data for it in present(at.section.eval))]
    return [_DataUse(section, at) for section in sections]


_KIND = (one_of("model.kind", lambda at: at.config.model.kind, models.TASKS),)
_TASK = (
    Row(
        lambda it: it.task in models.TASKS[it.at.config.model.kind],
        lambda it: unknown(
            f"the task of model.kind={it.at.config.model.kind!r}",
            it.task,
            models.TASKS[it.at.config.model.kind],
        ),
    ),
    Row(
        lambda it: it.data.modality == it.modality,
        "data.source={0.data.source!r} gives {0.data.modality}, but the model is a "
        "{0.at.config.model.kind}, which takes {0.modality}",
    ),
)
CHECKS = (Check(checks.stage, _KIND), Check(_data_uses, _TASK))


def open_examples(stage: Stage, config_data: Any) -> data.Examples:
    """Returns the examples of a data section.

    The names of undecodable files go to `bad_files.log` in the stage's folder.
    """
    return data.open_examples(config_data, _bad_log(stage))


def _bad_log(stage: Stage) -> str:
    stage.folder.mkdir(parents=True, exist_ok=True)
    return str(stage.folder / "bad_files.log")


def open_training(stage: Stage) -> data.Examples:
    """Returns the training examples of a stage, including those that it replays.

    Raises UserError where a classifier replays other classes than its own, and for a queue
    that does not fit the batches or the data.
    """
    if stage.config.replay is None:
        examples = open_examples(stage, stage.config.data)
    else:
        examples = _open_replay(stage)
    _check_queue(stage, len(examples))
    return examples


def _open_replay(stage: Stage) -> data.ReplayExamples:
    config, log_file = stage.config, _bad_log(stage)
    examples = data.open_replay(config.data, config.replay, log_file, config.num_steps)
    if stage.task == "classify" and not examples.same_classes:
        raise UserError(
            f"stage {stage.label}: replay.data {name_replayed(stage)} has other classes than "
            f"{config.data.source}; a classifier can only replay its own"
        )
    return examples


def name_replayed(stage: Stage) -> str:
    """Returns the names of the replayed sources, for messages."""
    data_sections = data.replay_sections(stage.config.replay)
    return " + ".join(section.source for section in data_sections)


def _check_queue(stage: Stage, count: int) -> None:
    """Raises UserError for a queue that does not fit the batches or the data.

    count: the number of training examples. A queue of more than half of them would contain
    keys of the queries' own examples.
    """
    objective, batch_size = stage.config.objective, stage.config.batch_size
    size = objective.queue_size if objective.name == "contrast" else 0
    if size % batch_size:
        raise UserError(
            f"stage {stage.label}: objective.queue_size={size} must be a multiple of "
            f"batch_size={batch_size}"
        )
    if size > count // 2:
        raise UserError(
            f"stage {stage.label}: objective.queue_size={size} is more than half of the "
            f"{count} training examples, so that a query would meet keys of its own "
            f"example; set it to {count // 2} or less"
        )


def num_classes(stage: Stage, examples: data.Examples) -> int:
    """Returns `model.num_classes`, or where it is 0 the number of classes of the data.

    It is 1 for a regression and 0 where the model is no classifier. Raises UserError for
    labels that the objective cannot learn, and for more classes than `model.num_classes`.
    """
    wanted, named = stage.config.model.num_classes, len(examples.class_names)
    if stage.task != "classify":
        return 0
    _check_labels(stage, examples)
    if stage.config.objective.name == "regress":
        return 1
    if _has_new_head(stage):
        with errors.reword_errors({"^": f"stage {stage.label}: "}):
            classes.check_several(examples)
    if np.min(examples.labels) < 0:
        raise UserError(
            f"stage {stage.label}: {stage.config.data.source} has examples without a "
            "label; classification needs one for each"
        )
    if wanted and wanted < named:
        raise UserError(
            f"stage {stage.label}: model.num_classes={wanted} but the data has {named}"
        )
    return wanted or named


def _check_labels(stage: Stage, examples: data.Examples) -> None:
    """Raises UserError unless labels are numbers for "regress", classes for the others."""
    numbers = np.issubdtype(examples.labels.dtype, np.floating)
    if numbers != (stage.config.objective.name == "regress"):
        raise UserError(
            f"stage {stage.label}: objective {stage.config.objective.name!r} and the "
            f"labels of {stage.config.data.source} do not fit: 'regress' needs text data "
            "with data.label_kind='number', 'classify' class names"
        )


def check_text(
    stage: Stage, model: nn.Module, section: Any, examples: data.Examples
) -> None:
    """Raises UserError unless rows and vocabulary of texts fit the model and objective.

    section: the data section of `examples`. Examples of images are not checked.
    """
    if isinstance(examples, data.ReplayExamples):
        replayed = data.replay_sections(stage.config.replay)[0]
        check_text(stage, model, section, examples.target)
        check_text(stage, model, replayed, examples.source)
    if not isinstance(examples, data.TextExamples):
        return
    try:
        models.check_fits(model.config, **examples.row_sizes)
        checks.run(_TEXT_ROWS, (stage, section, examples.tokenizer))
    except UserError as error:
        where = f"stage {stage.label}: {section.tokenizer}"
        raise UserError(f"{where}: {error}") from None


# Rules of (stage, data section of texts, its tokenizer).
_TEXT_ROWS = (
    Row(
        lambda it: (
            it[0].task not in ("classify", "contrast") or it[1].layout == "padded"
        ),
        "data.layout={0[1].layout!r} puts several texts in a row; objective "
        "{0[0].config.objective.name!r} needs 'padded'",
    ),
    Row(
        lambda it: _mask_id(it[0].config.objective) in (None, it[2].mask_id),
        "objective.mask_token_id is not the mask token of the tokenizer, which is "
        "{0[2].mask_id}",
    ),
)


def _mask_id(objective: Any) -> int | None:
    """Returns the mask token of an objective, None if it masks no tokens."""
    return objective.get("masked", objective).get("mask_token_id")


def _has_new_head(stage: Stage) -> bool:
    """Returns whether the classifier's head is new, so that it learns from this stage alone."""
    return stage.config.init_from == "scratch" or "head" in stage.config.model.fresh


def check_same_classes(stage: Stage, train: data.Examples, test: data.Examples) -> None:
    """Raises UserError unless both have the same classes and all test examples a label.

    A new head also needs a training example of every class in the test examples. A loaded
    head may know a class from an earlier stage.
    """
    if stage.task != "classify":
        return
    where = stage.config.eval.data.source
    if train.class_names != test.class_names:
        with errors.reword_errors({"^": f"stage {stage.label}: "}):
            classes.check_known(train, test)
        raise UserError(
            f"stage {stage.label}: the training data has the classes "
            f"{train.class_names} but eval.data {where} has {test.class_names}"
        )
    if stage.config.objective.name != "regress" and np.min(test.labels) < 0:
        without = np.flatnonzero(np.asarray(test.labels) < 0)
        shown = ", ".join(test.names[int(row)] for row in without[:3])
        raise UserError(
            f"stage {stage.label}: {len(without)} of the {len(test)} test examples of {where} "
            f"are without a label, such as {shown}: label them, or leave them out"
        )
    if _has_new_head(stage):
        with errors.reword_errors({"^": f"stage {stage.label}: "}):
            classes.check_known(train, test)


def check_test_classes(stage: Stage) -> None:
    """Runs `check_same_classes` before a sweep, whose runs do not open the test data."""
    config = stage.config
    if stage.task != "classify" or config.eval is None or config.replay is not None:
        return
    train, test = (
        data.open_examples(one, "") for one in (config.data, config.eval.data)
    )
    check_same_classes(stage, train, test)


def warn_of_overflow(stage: Stage, values: dict[str, float]) -> bool:
    """Returns whether masked tokens were over the limit of their row, and logs how many.

    values: the metrics of training, see the objective "mlm".
    """
    lost = int(values.get("overflow", 0))
    if lost:
        log.warning(
            "%s: %d masked tokens, beside %d, were more than "
            "objective.max_masked_fraction of their row and not learnt from",
            *(stage.label, lost, values["masked_tokens"]),
        )
    return lost > 0
