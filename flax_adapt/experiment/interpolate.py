"""A graded rollback: the weights start + a (adapted - start) for a from 0 to 1.

As WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), for any stage: what of the adaptation
is kept, and what of the source is forgotten. The rule is ours. The best a is that with the
highest mean accuracy (kNN, linear probe, and the fine-tuned head where there is one) on
every other test example of the target, by name, among those that lose no more than `keep`
on the source; the smallest of equal ones. The other half of the test examples, the same
ones for all draws of labels, says what it is worth.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flax_adapt import data, weights
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import addresses
from flax_adapt.base.types import Params
from flax_adapt.evals import outputs
from flax_adapt.experiment import measure, pairs
from flax_adapt.experiment.measuring import drawn
from flax_adapt.experiment.pairs import Pair
from flax_adapt.stage import weights as stage_weights
from flax_adapt.stage.predictions import Predictions

EXPORT = "interpolated"  # NAME.json is what was measured, NAME/ the best weights
# Metrics of frozen features that the rule looks at, and that of a fine-tuned head.
METRICS, HEAD = ("knn", "probe"), "head"
SOURCE = "the source"  # how the names of sources begin


class Point(NamedTuple):
    """What one a is worth: predictions by metric, each {draw of labels: predictions}.

    others: (name, predictions) of other targets and of sources, where `keep` holds.
    """

    a: float
    target: Mapping[str, Mapping[int, Predictions]]
    others: Sequence[tuple[str, Mapping[str, Mapping[int, Predictions]]]]


def run(
    config: Any, workdir: Path, name: str, points: int, keep: float, export: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns (a row for each a, the best one with its worth); writes `record_of`.

    export: the best weights are written into the folder `interpolated/NAME`, too.
    """
    if points < 2 or not 0 <= keep <= 1:
        raise UserError(
            f"--points={points} must be at least 2, and --keep={keep} in [0, 1]"
        )
    pair = pairs.open_pair(config, workdir, name)
    found = measure_points(config, pair, np.linspace(0, 1, points).tolist())
    best = choose(found, keep)
    rows = [_row(point) for point in found]
    chosen = describe_choice(found, best, keep)
    folder = workdir / EXPORT / name
    if export:
        _export(pair, found[best].a, folder)
        chosen["export"] = addresses.restore(str(folder))
    record = record_of(workdir, name)
    record.parent.mkdir(parents=True, exist_ok=True)
    logs.write_json(record, {"stage": name, "rows": rows, "best": chosen})
    return rows, chosen


def record_of(workdir: Path, name: str) -> Path:
    """Returns the file of what was measured between the ends of a stage."""
    return workdir / EXPORT / f"{name}.json"


def measure_points(config: Any, pair: Pair, values: Sequence[float]) -> list[Point]:
    """Returns what each a is worth on all evaluation sections."""
    models = [
        measure.Model(
            *(f"a={a:.2f}", pair.stage.folder / "export", {}),
            *(_mixer(pair, a), pair.stage),
        )
        for a in values
    ]
    targets: list[tuple[str, Any]] = []
    sources: list[tuple[str, Any]] = []
    for section in (config.evaluate, *config.more_evaluations):
        found = measure.measure_models(config, section, models, pair.stage.workdir)
        targets.append((section.test.source, found.on_target))
        if section.source is not None:
            sources.append((f"{SOURCE} {section.source.source}", found.on_source))
    (_, first), *others = targets + sources
    points = []
    heads = _answer_heads(pair, values)
    for number, (a, head) in enumerate(zip(values, heads, strict=True)):
        mine = {} if first[number] is None else _arms(first[number])
        kept = [(name, _arms(x[number])) for name, x in others if x[number] is not None]
        points.append(Point(a, {**mine, **head}, kept))
    if not points[0].target:
        raise UserError(
            f"--stage={pair.stage.label}: nothing on the target can choose between start and "
            "adapted weights: its test data have no classes, and the stage has no classifier "
            "that is evaluated"
        )
    return points


def _mixer(pair: Pair, a: float) -> Callable[[Params], Params]:
    return lambda params: pair.mix(params, a)


def _arms(answers: Any) -> dict[str, Mapping[int, Predictions]]:
    return {name: answers.arms[name] for name in METRICS}


def _answer_heads(pair: Pair, values: Sequence[float]) -> list[dict[str, Any]]:
    """Returns the predictions of the fine-tuned head for each a.

    {} without a classifier, and for a regression, whose numbers are never right or wrong.
    """
    section, objective = pair.stage.config.eval, pair.stage.config.objective.name
    if pair.task != "classify" or section is None or objective == "regress":
        return [{} for _ in values]
    examples = data.open_examples(section.data, "")
    found = []
    for a in values:
        mixed = pair.mix(pair.adapted, a)
        sizes = (section.data, section.batch_size)
        logits = outputs.compute_outputs(pair.model, mixed, examples, *sizes)
        names = drawn.names_of(examples, logits)
        guesses = logits.embeddings.argmax(axis=-1).astype(np.int32)
        losses = np.full(len(guesses), np.nan, np.float32)
        found.append({HEAD: {0: Predictions(names, logits.labels, guesses, losses)}})
    return found


def choose(points: Sequence[Point], keep: float) -> int:
    """Returns the number of the best point by the rule of this module.

    points: that of a = 0 first, which is always allowed.
    """
    floors = [_accuracies(arms) for _, arms in points[0].others]
    best, highest = 0, -1.0
    for number, point in enumerate(points):
        kept = all(
            value >= floor[metric] - keep
            for (_, arms), floor in zip(point.others, floors, strict=True)
            for metric, value in _accuracies(arms).items()
        )
        score = np.mean([*_by_half(point, 0).values()])
        if kept and score > highest + 1e-9:
            best, highest = number, float(score)
    return best


def _by_half(point: Point, half: int) -> dict[str, float]:
    """Returns the accuracy on the target by metric, of every other example: 0 or 1."""
    tested = [one.names for arm in point.target.values() for one in arm.values()]
    mine = np.unique(np.concatenate(tested))[half::2]
    return {metric: _accuracy(arm, mine) for metric, arm in point.target.items()}


def _accuracies(arms: Mapping[str, Mapping[int, Predictions]]) -> dict[str, float]:
    return {metric: _accuracy(arm) for metric, arm in arms.items()}


def _accuracy(arm: Mapping[int, Predictions], names: np.ndarray | None = None) -> float:
    """Returns the mean accuracy over draws, of the examples `names`, or of all."""
    values = []
    for one in arm.values():
        is_mine = True if names is None else np.isin(one.names, names)
        values.append(np.mean(one.labels == one.guesses, where=is_mine))
    return float(np.mean(values))


def describe_choice(points: Sequence[Point], best: int, keep: float) -> dict[str, Any]:
    """Returns the best a, the rule, and accuracies on the half that did not choose."""
    rule = "the highest mean accuracy on every other test example"
    if others := [name for name, _ in points[0].others]:
        rule += f", with a loss of at most {keep:g} on {' and '.join(others)}"
    if not any(name.startswith(SOURCE) for name in others):
        rule += "; what is forgotten is not measured, without a source that has classes"
    return {
        "a": points[best].a,
        "rule": rule,
        "on_the_other_half": {
            name: _by_half(points[number], 1)
            for name, number in (("start", 0), ("best", best), ("adapted", -1))
        },
    }


def describe_other_half(best: Mapping[str, Any]) -> list[str]:
    """Returns the lines on what weights are worth on the half that did not choose."""
    lines = []
    for name, values in best["on_the_other_half"].items():
        said = ", ".join(f"{metric} {value:.4f}" for metric, value in values.items())
        lines.append(f"on the other half of the test examples: {name} {said}")
    return lines


def _row(point: Point) -> dict[str, Any]:
    row = {"a": round(point.a, 4)}
    row |= _accuracies(point.target)
    for number, (_, arms) in enumerate(point.others, 1):
        mark = f"source_{number}" if len(point.others) > 1 else "source"
        row |= {f"{metric}_{mark}": x for metric, x in _accuracies(arms).items()}
    return row


def _export(pair: Pair, a: float, folder: Path) -> None:
    """Writes the mixed weights with the tokenizer or preprocessing of the stage."""
    classes = weights.class_names(pair.stage.folder / "export")
    extras = stage_weights.describe_export(pair.stage, classes)
    weights.save_pretrained(folder, pair.model, pair.mix(pair.adapted, a), **extras)
