"""How a stage measures the metrics that it watches, see `stage.watching`.

    target/knn         accuracy of kNN by frozen features on the labelled examples of
                       `evaluate.train`, each of which the others classify
    target/probe       accuracy of a linear probe on them, by cross-validation
    source/knn         accuracy of kNN on one half of the examples of `evaluate.source`, which
                       the other half classifies, as `eval` measures forgetting
    pool/rankme        RankMe of the features of the stage's own data, the mean of GROUPS
                       groups of examples
    held_out/loss      the stage's loss on a part of its data that it is not trained on
    held_out/accuracy  the accuracy of a classifier on that part

Of a state, features of the same examples are computed once for all metrics that need them.
Test examples of the target have no say. Labels are those of the run's seed. A verdict takes
the difference of the best (or the last, see `stage.watching.section`) and the initial state
by example, or by group of examples for RankMe and the loss, which are no means over examples.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from flax_adapt import data
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Meter as Sums
from flax_adapt.defaults.sections import split_metrics
from flax_adapt.evals import drift, knn, probe
from flax_adapt.evals.features import Features
from flax_adapt.experiment.measuring import drawn
from flax_adapt.experiment.measuring.folds import number_folds
from flax_adapt.experiment.measuring.state_features import StateFeatures
from flax_adapt.stage import draws
from flax_adapt.stage.evaluating import Evaluation
from flax_adapt.stage.stage import Stage
from flax_adapt.stage.watching import section as watching
from flax_adapt.stage.watching.measurements import Meter
from flax_adapt.train import linear, sharding
from flax_adapt.train.state import TrainState

GROUPS, FOLDS = 16, 5
# What some metrics need of a state: features of examples, or {metric: value} of each group.
Compute = Callable[[TrainState], Any]
# Kind of metric -> (field of `evaluate` whose classes it needs, what to do without).
_LACKS = {
    watching.TARGET: (
        *("train", "without labels there are 'pool/rankme' and 'held_out/loss'"),
    ),
    watching.SOURCE: ("source", "leave 'source/knn' out"),
}


def open_meter(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> Meter:
    """Returns what measures all metrics that a stage watches.

    Raises UserError where the examples of a metric do not fit it.
    """
    wanted = {name: _METRICS[name] for name in split_metrics(stage.config.watch.metric)}
    opened: dict[Callable[..., Compute], Compute] = {}
    for open_view, _ in wanted.values():
        if open_view not in opened:
            opened[open_view] = open_view(stage, model, examples, mesh)

    def measure(state: TrainState) -> dict[str, np.ndarray]:
        found = {view: compute(state) for view, compute in opened.items()}
        return {
            name: measure_one(stage, found[view])
            for name, (view, measure_one) in wanted.items()
        }

    return measure


def _name(stage: Stage, kind: str) -> str:
    return watching.find_metric(stage.config, kind)


def describe_lack(stage: Stage, kind: str) -> str:
    """Returns the message that the examples of a metric have no two classes."""
    side, advice = _LACKS[kind]
    source = stage.experiment.evaluate[side].source
    return (
        f"stage {stage.label}: watch.metric={_name(stage, kind)!r} needs examples of two "
        f"classes in evaluate.{side}, which {source} has not; {advice}"
    )


def _open_labelled(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> Compute:
    """Returns what computes the features of the labelled examples of `evaluate.train`."""
    section = draws.draw_labels(stage.experiment.evaluate.train, stage.run_seed)
    encoder = StateFeatures(stage, section, mesh, _name(stage, watching.TARGET))
    labels = _keep_labelled(encoder)
    if _count_classes(labels) < 2:
        raise UserError(describe_lack(stage, watching.TARGET))
    return encoder.compute


def _open_source(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> Compute:
    """Returns what computes the features of the labelled examples of `evaluate.source`."""
    section = stage.experiment.evaluate.source
    encoder = StateFeatures(stage, section, mesh, _name(stage, watching.SOURCE))
    labels = _keep_labelled(encoder)
    halves = drawn.split_halves(labels)
    if min(_count_classes(labels[half]) for half in halves) < 2:
        raise UserError(describe_lack(stage, watching.SOURCE))
    return encoder.compute


def _keep_labelled(encoder: StateFeatures) -> np.ndarray:
    """Returns the labels of the rows that have one, which alone are encoded from now on."""
    labels = encoder.examples.labels[encoder.rows]
    if labels.dtype.kind == "f":
        return np.array([], np.int32)
    encoder.rows = encoder.rows[labels >= 0]
    return labels[labels >= 0]


def _count_classes(labels_n: np.ndarray) -> int:
    return len(np.unique(labels_n))


def _open_pool(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> Compute:
    """Returns what computes the features of the stage's own examples."""
    section, name = _take_whole_texts(stage.config.data), _name(stage, watching.POOL)
    encoder = StateFeatures(stage, section, mesh, name)
    _split(len(encoder.rows), 2 * GROUPS, stage, watching.POOL)
    return encoder.compute


def _of_features(
    measure: Callable[[Any, Features], np.ndarray],
) -> Callable[[Stage, Features], np.ndarray]:
    """Returns a measure of a stage's features; NaN where they are not finite.

    measure: (the section `evaluate`, features) -> numbers.
    """

    def measure_finite(stage: Stage, found: Features) -> np.ndarray:
        if np.isnan(found.embeddings).any():
            return found.embeddings[:, 0]
        return measure(stage.experiment.evaluate, found)

    return measure_finite


def _classify_left_out(section: Any, found: Features) -> np.ndarray:
    how = dict(k=section.knn_k, temperature=section.knn_temperature)
    guesses = knn.predict_left_out(found.embeddings, found.labels, **how)
    return np.asarray(guesses == found.labels, np.float64)


def classify_halves(section: Any, found: Features) -> np.ndarray:
    """Returns 1.0 for each example of the second half that kNN by the first has right.

    section: `evaluate`, with `knn_k` and `knn_temperature`. Classes are halved, see
    `drawn.split_halves`.
    """
    fit, test = drawn.split_halves(found.labels)
    how = dict(k=min(section.knn_k, len(fit)), temperature=section.knn_temperature)
    sets = (found.embeddings[fit], found.labels[fit], found.embeddings[test])
    return np.asarray(knn.predict(*sets, **how) == found.labels[test], np.float64)


def _cross_validate(section: Any, found: Features) -> np.ndarray:
    l2 = section.probe_l2 or linear.PENALTY
    return cross_validate(found.embeddings, found.labels, l2)


def cross_validate(
    features_nD: np.ndarray, labels_n: np.ndarray, l2: float
) -> np.ndarray:
    """Returns 1.0 for each example that a linear probe of the other folds has right, else 0.0.

    An example that is alone in its class is left out.
    """
    folds = number_folds(labels_n, FOLDS)
    parts = []
    for fold in range(FOLDS):
        test, rest = folds == fold, folds != fold
        if not np.any(test):
            continue
        sets = (features_nD[rest], labels_n[rest], features_nD[test], labels_n[test])
        answers = probe.predict(*sets, l2=l2, folds=FOLDS, seed=0)
        parts.append(answers.guesses == labels_n[test])
    return np.concatenate(parts).astype(np.float64)


def _rank_groups(section: Any, found: Features) -> np.ndarray:
    del section  # RankMe has no settings
    rows = found.embeddings
    return np.array([drift.rankme(rows[i::GROUPS]) for i in range(GROUPS)])


def _take_whole_texts(section: Any) -> Any:
    """Returns a data section with one text in a row; images stay as they are."""
    if section.modality != "text":
        return section
    return draws.change_fields(section, layout="padded")


def _split(count: int, least: int, stage: Stage, kind: str) -> int:
    """Returns the number of groups; raises UserError for fewer than `least` examples."""
    if count < least:
        raise UserError(
            f"stage {stage.label}: watch.metric={_name(stage, kind)!r} needs "
            f"{least} examples or more, and there are {count}"
        )
    return min(GROUPS, count)


def _open_held_out(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> Compute:
    """Returns what computes loss and metrics of each group of the held-out examples."""
    metric = _name(stage, watching.HELD_OUT).partition("/")[2]
    fields = dict(data=watching.take_held_out(stage), metric=metric, every_steps=0)
    fields |= dict(batch_size=stage.config.batch_size, mode="max")
    tested = stage._replace(config=draws.change_fields(stage.config, eval=fields))
    evaluation = Evaluation(tested, model, examples, mesh)
    count = len(evaluation.examples)
    number = _split(count, 2, stage, watching.HELD_OUT)
    groups = np.array_split(np.arange(count), number)
    largest = min(stage.config.batch_size, len(groups[0]))
    evaluation.batch_size = sharding.whole_batch_size(largest, mesh)
    wanted = [
        name.removeprefix(watching.HELD_OUT)
        for name in split_metrics(stage.config.watch.metric)
        if name.startswith(watching.HELD_OUT)
    ]

    def measure_group(state: TrainState, rows: np.ndarray) -> dict[str, float]:
        sums = Sums()
        for metrics in evaluation.measure_batches(state, rows):
            sums.add({name: metrics[name] for name in wanted})
        return sums.values()

    return lambda state: [measure_group(state, rows) for rows in groups]


def _of_groups(
    metric: str,
) -> Callable[[Stage, list[dict[str, float]]], np.ndarray]:
    return lambda stage, groups: np.array([values[metric] for values in groups])


# Metric -> (what opens its examples, the numbers by what was computed of these in a state).
_METRICS: dict[str, tuple[Callable[..., Compute], Callable[..., np.ndarray]]] = {
    "target/knn": (_open_labelled, _of_features(_classify_left_out)),
    "target/probe": (_open_labelled, _of_features(_cross_validate)),
    "source/knn": (_open_source, _of_features(classify_halves)),
    "pool/rankme": (_open_pool, _of_features(_rank_groups)),
    "held_out/loss": (_open_held_out, _of_groups("loss")),
    "held_out/accuracy": (_open_held_out, _of_groups("accuracy")),
}
