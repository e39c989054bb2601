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
from flax_adapt.base import logs, rules
from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import addresses
from flax_adapt.base.types import Params
from flax_adapt.evals import outputs
from flax_adapt.experiment import measure, provenance, recipe
from flax_adapt.stage import stage as stages
from flax_adapt.stage import weights as stage_weights
from flax_adapt.stage.predictions import Predictions
from flax_adapt.stage.stage import Stage
from flax_adapt.weights.loading import PARTS

EXPORT = "interpolated"  # NAME.json is what was measured, NAME/ the best weights
# Metrics of frozen features that the rule looks at, and that of a fine-tuned head.
METRICS, HEAD = ("knn", "probe"), "head"


class Point(NamedTuple):
    """What one a is worth: predictions by metric, each {draw of labels: predictions}."""

    a: float
    target: Mapping[str, Mapping[int, Predictions]]
    sources: Sequence[Mapping[str, Mapping[int, Predictions]]]


class Pair(NamedTuple):
    """The weights of a stage before and after training; names and shapes are the same.

    start: {name: array} of the leaves that both have. model: of the stage's export.
    """

    stage: Stage
    task: str
    model: Any
    adapted: Params
    start: dict[str, np.ndarray]

    def mix(self, params: Params, a: float) -> Params:
        """Returns (1 - a) start + a params; leaves that the start lacks are unchanged."""

        def of_leaf(name: str, leaf: Any) -> Any:
            if name not in self.start:
                return leaf
            return (1 - a) * self.start[name] + a * np.asarray(leaf)

        return rules.map_named(of_leaf, params)


def open_pair(config: Any, workdir: Path, name: str) -> Pair:
    """Returns the weights of a stage's run before and after it.

    name: NAME or NAME/seed_S. Raises UserError for another name, a stage that is not
    finished or began from scratch, and weights of other shapes.
    """
    runs = {one.label: one for one in recipe.measurable_runs(config, workdir)}
    if name not in runs:
        raise UserError(
            f"--stage={name} is no finished stage of {workdir}; there are: "
            f"{', '.join(runs) or 'none'}"
        )
    stage = runs[name]
    text = stage.config.init_from
    if text == "scratch":
        raise UserError(
            f"--stage={name} began from scratch: there is no start to go to"
        )
    task = stage.exported_task
    model, adapted, _ = weights.from_pretrained(stage.folder / "export", task)
    path = stages.resolve_field(stage, "init_from")
    start = _load_start(stage, path, task, adapted)
    return Pair(stage, task, model, adapted, start)


def _load_start(
    stage: Stage, path: Path, task: str, adapted: Params
) -> dict[str, np.ndarray]:
    options = stages.known_options_of(stage, stage.config.init_from)
    sizes: dict[str, Any] = dict.fromkeys(weights.reshape.FIELDS)
    own = (
        task
        if task in PARTS and weights.does_task(path, task, **options)
        else "encoder"
    )
    opened = weights.open_params(path, own, reshape=(), sizes=sizes, **options)
    with opened as params:
        leaves = {n: np.asarray(x) for n, x in rules.name_leaves(params).items()}
    ours = {n: np.shape(x) for n, x in rules.name_leaves(adapted).items()}
    check_shapes(stage.label, {n: x.shape for n, x in leaves.items()}, ours)
    return {n: x for n, x in leaves.items() if ours.get(n) == x.shape}


def check_shapes(
    label: str,
    start: Mapping[str, tuple[int, ...]],
    adapted: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises UserError where the encoders differ: {name: shape} of both models' leaves."""
    one, other = (
        {n: shape for n, shape in shapes.items() if n.startswith("encoder/")}
        for shapes in (start, adapted)
    )
    # A pooler may be new with a classifier: it is part of the head.
    both = {n for n in {**one, **other} if "/pooler/" not in n or n in one}
    unlike = sorted(n for n in both if one.get(n) != other.get(n))
    if unlike:
        name = unlike[0]
        raise UserError(
            f"--stage={label}: start and adapted weights have other shapes, so that there is "
            f"nothing between them: {name} is {one.get(name, 'missing')} in the start and "
            f"{other.get(name, 'missing')} after it ({len(unlike)} parameters in all)"
        )


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
    pair = open_pair(config, workdir, name)
    provenance.note_start(workdir)
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
    targets, sources = [], []
    for section in (config.evaluate, *config.more_evaluations):
        measured = measure.measure_models(config, section, models, pair.stage.workdir)
        targets.append(measured.on_target)
        sources.append(measured.on_source)
    heads = _answer_heads(pair, values)
    points = []
    for number, (a, head) in enumerate(zip(values, heads, strict=True)):
        on_target = targets[0][number]
        others = [*[one[number] for one in targets[1:]], *[s[number] for s in sources]]
        arms = {} if on_target is None else _arms(on_target)
        found = [_arms(one) for one in others if one is not None]
        points.append(Point(a, {**arms, **head}, found))
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
        names = np.array([examples.names[i] for i in logits.indices.tolist()])
        guesses = logits.embeddings.argmax(axis=-1).astype(np.int32)
        losses = np.full(len(guesses), np.nan, np.float32)
        found.append({HEAD: {0: Predictions(names, logits.labels, guesses, losses)}})
    return found


def choose(points: Sequence[Point], keep: float) -> int:
    """Returns the number of the best point by the rule of this module.

    points: that of a = 0 first, which is always allowed.
    """
    floors = [{m: _accuracy(arm) for m, arm in s.items()} for s in points[0].sources]
    best, highest = 0, -1.0
    for number, point in enumerate(points):
        kept = all(
            _accuracy(arm) >= floor[metric] - keep
            for source, floor in zip(point.sources, floors, strict=True)
            for metric, arm in source.items()
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
    if points[0].sources:
        rule += f", with a loss of at most {keep:g} on the source"
    else:
        rule += "; what is forgotten is not measured, as evaluate.source is None"
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
    row |= {metric: _accuracy(arm) for metric, arm in point.target.items()}
    for number, source in enumerate(point.sources, 1):
        mark = f"source_{number}" if len(point.sources) > 1 else "source"
        row |= {f"{metric}_{mark}": _accuracy(arm) for metric, arm in source.items()}
    return row


def _export(pair: Pair, a: float, folder: Path) -> None:
    """Writes the mixed weights with the tokenizer or preprocessing of the stage."""
    classes = weights.class_names(pair.stage.folder / "export")
    extras = stage_weights.describe_export(pair.stage, classes)
    weights.save_pretrained(folder, pair.model, pair.mix(pair.adapted, a), **extras)
