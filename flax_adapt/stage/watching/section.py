"""A stage that watches a metric keeps its best state, and stops when none is better any more.

The section `watch` of a stage:

    metric       a name of `defaults.sections.METRICS`, or several of them joined by +. The
                 first decides; the others are measured at the same steps and written down
    every_steps  steps between two measurements; 0: only after the last step
    patience     measurements without a better one after which training stops; 0: never
    min_delta    how much better a measurement must be than the best one so far
    on_hurt      "warn" or "rollback": what happens if the stage hurt
    examples     the most examples that a measurement reads

The metric is measured before the first step, every `every_steps` steps and after the last.
The result of the stage (its export, what later stages start from) is the best of the trained
states. Its checkpoint stays on disk until a better one is complete, and the measurements are
a part of every checkpoint, so that a run that was stopped goes on exactly. A verdict compares
the best state with the initial one. A stage hurt if its best state did, or if its last one did
and there is no evidence that the best one helped; with on_hurt="rollback" its result is then
the initial weights.
"""

from typing import Any

from flax_adapt.base.checks import Check, Context, Row, builds, one_of
from flax_adapt.defaults.sections import ON_HURT, check_metrics, split_metrics
from flax_adapt.stage import draws
from flax_adapt.stage.stage import Stage

# The examples that metrics are measured on: how the names of these metrics begin.
HELD_OUT, TARGET, SOURCE, POOL = "held_out/", "target/", "source/", "pool/"


def _sections(at: Any) -> list[Any]:
    return [] if at.section.watch is None else [at.section]


def _contexts(at: Context) -> list[Context]:
    return [at] if reads_source(at.section) else []


_ROWS = (
    builds(lambda it: check_metrics("watch.metric", it.watch.metric)),
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
        lambda it: (
            "held_out/accuracy" not in split_metrics(it.watch.metric)
            or _has_classes(it.objective)
        ),
        "watch.metric='held_out/accuracy' is of classes; objective {0.objective.name!r} "
        "has 'held_out/loss'",
    ),
)
_SOURCE_ROWS = (
    Row(
        lambda at: at.config.evaluate.source is not None,
        "watch.metric={0.section.watch.metric!r}: source/knn is measured on evaluate.source, "
        "which this config has not: leave source/knn out",
    ),
)
CHECKS = (Check(_sections, _ROWS), Check(_contexts, _SOURCE_ROWS))


def _has_classes(objective: Any) -> bool:
    return objective.name in ("classify", "glad")


def find_metric(section: Any, kind: str) -> str:
    """Returns the first metric of a kind (such as TARGET) that a stage watches; "": none."""
    names = () if section.watch is None else split_metrics(section.watch.metric)
    return next((name for name in names if name.startswith(kind)), "")


def is_held_out(section: Any) -> bool:
    """Returns whether a stage is measured on examples that it is not trained on."""
    return bool(find_metric(section, HELD_OUT))


def reads_labels(section: Any) -> bool:
    """Returns whether a stage is measured on the labelled examples of `evaluate.train`."""
    return bool(find_metric(section, TARGET))


def reads_source(section: Any) -> bool:
    """Returns whether a stage is measured on the examples of `evaluate.source`."""
    return bool(find_metric(section, SOURCE))


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
