"""A stage that watches a metric keeps its best state, and stops when none is better any more.

The section `watch` of a stage:

    metric       a name of `defaults.sections.METRICS`
    every_steps  steps between two measurements; 0: only after the last step
    patience     measurements without a better one after which training stops; 0: never
    min_delta    how much better a measurement must be than the best one so far
    on_hurt      "warn" or "rollback": what happens if the best state is worse than the start
    examples     the most examples that a measurement reads

The metric is measured before the first step, every `every_steps` steps and after the last.
The result of the stage (its export, what later stages start from) is the best of the trained
states. Its checkpoint stays on disk until a better one is complete, and the measurements are
a part of every checkpoint, so that a run that was stopped goes on exactly. A verdict compares
the best state with the initial one; with on_hurt="rollback" a stage that hurt has its initial
weights as its result.
"""

from typing import Any

from flax_adapt.base.checks import Check, Row, one_of
from flax_adapt.defaults.sections import METRICS, ON_HURT
from flax_adapt.stage import draws
from flax_adapt.stage.stage import Stage

_HELD_OUT, _TARGET = "held_out/", "target/"


def _sections(at: Any) -> list[Any]:
    return [] if at.section.watch is None else [at.section]


_ROWS = (
    one_of("watch.metric", lambda it: it.watch.metric, METRICS),
    one_of("watch.on_hurt", lambda it: it.watch.on_hurt, ON_HURT),
    Row(
        lambda it: (
            min(it.watch.every_steps, it.watch.patience, it.watch.min_delta) >= 0
        ),
        "watch.every_steps={0.watch.every_steps}, watch.patience={0.watch.patience} and "
        "watch.min_delta={0.watch.min_delta} must be 0 or more",
    ),
    Row(
        lambda it: it.watch.examples >= 16,
        "watch.examples={0.watch.examples} must be at least 16",
    ),
    Row(
        lambda it: it.sweep is None,
        "watch and sweep both choose by held-out examples: set one of them to None",
    ),
    Row(
        lambda it: it.optim.solve is None,
        "watch is of a stage that takes steps; optim.solve finds the head in one",
    ),
    Row(
        lambda it: it.watch.metric != "held_out/accuracy" or _has_classes(it.objective),
        "watch.metric='held_out/accuracy' is of classes; objective {0.objective.name!r} "
        "has 'held_out/loss'",
    ),
)
CHECKS = (Check(_sections, _ROWS),)


def _has_classes(objective: Any) -> bool:
    return objective.name in ("classify", "glad")


def is_held_out(section: Any) -> bool:
    """Returns whether a stage is measured on examples that it is not trained on."""
    return section.watch is not None and section.watch.metric.startswith(_HELD_OUT)


def reads_labels(section: Any) -> bool:
    """Returns whether a stage is measured on the labelled examples of `evaluate.train`."""
    return section.watch is not None and section.watch.metric.startswith(_TARGET)


def hold_out(stage: Stage) -> Stage:
    """Returns the stage whose training data lacks the examples that `watch` holds out."""
    if not is_held_out(stage.config):
        return stage
    return stage._replace(config=_take_part(stage.config, "without_watched"))


def take_held_out(stage: Stage) -> Any:
    """Returns the data section of the held-out examples; stage: before `hold_out`, or after."""
    return _take_part(stage.config, "watched").data


def _take_part(section: Any, part: str) -> Any:
    """Returns the section of a stage with one part of its data, see `data.subset`."""
    subset = section.data.subset
    base = subset.base if subset.part in ("watched", "without_watched") else subset
    fields = dict(part=part, base=base, examples=section.watch.examples)
    taken = draws.change_fields(base, **fields)
    return draws.change_fields(
        section, data=draws.change_fields(section.data, subset=taken)
    )
