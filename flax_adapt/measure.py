"""What the model and every finished stage are worth: few-label accuracy, and drift."""

from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt import data, logs, recipe, sharding, weights
from flax_adapt.errors import UserError
from flax_adapt.evals import drift, knn, probe
from flax_adapt.evals.embed import Embedder
from flax_adapt.evals.features import Features
from flax_adapt.stage import told_of_init


class Sets(NamedTuple):
    """What `config.evaluate` names, opened.

    train None: there are no classes, so no accuracies. source None: no drift.
    """

    train: data.Examples | None
    test: data.Examples
    source: data.Examples | None


class Found(NamedTuple):
    """The features of one model on `Sets`; views are two of `test`, or none."""

    train: Features | None
    test: Features
    views: tuple[Features, ...]
    source: Features | None


def evaluate(config: Any, workdir: Path) -> list[dict[str, Any]]:
    """kNN and linear-probe accuracy of `init` and of every finished stage, and drift.

    Where the test data has no classes there is the drift alone.

    Where stages resize `init` in different ways there is a row for each.

    Written to `eval.json`. Features are the states after the final LayerNorm, pooled as
    `config.evaluate` says. Where it has a `source`, every measure of `drift` is taken
    against the features of `init`.
    """
    finished = recipe.finished(config, workdir)
    if not finished:
        raise UserError(
            f"{workdir} holds no finished stage of this config; run it first"
        )
    sets = _open(config)
    models = [(label, Path(config.init), fit) for label, fit in _originals(config)]
    models += [(stage.label, stage.folder / "export", {}) for stage in finished]
    rows, initial = [], None
    for label, folder, fit in models:
        found = _features(config, folder, fit, sets)
        initial = initial or found
        measured = {**_accuracies(config, found), **_drift(config, found, initial)}
        rows.append({"stage": label, **measured})
    logs.write_json(workdir / "eval.json", rows)
    return rows


def _open(config: Any) -> Sets:
    section = config.evaluate
    if section.source is not None:
        _check_drift(config)
    try:
        test = data.open_examples(section.test, "")
        has_classes = bool(test.class_names)
        train = data.open_examples(section.train, "") if has_classes else None
    except UserError as error:
        raise UserError(
            f"eval needs the data of the config's `evaluate`: {error}"
        ) from None
    if section.source is not None:
        return Sets(train, test, data.open_examples(section.source, ""))
    if train is None:
        raise UserError(
            f"eval measures kNN and a linear probe by class, but {section.test.source} "
            "has no classes; give evaluate.source to measure drift alone"
        )
    return Sets(train, test, None)


def _check_drift(config: Any) -> None:
    """Drift is from `init`, and alignment is of two views that differ."""
    section = config.evaluate
    is_image = section.test.modality == "image"
    rules = (
        (
            bool(config.init),
            "evaluate.source asks for drift from the config's `init`, which is empty; "
            "give init=PATH, or set evaluate.source to None",
        ),
        (
            not is_image or len(section.test.views) == 2,
            "evaluate.test.views must be two augmentations, whose alignment is measured",
        ),
        (
            is_image or section.view_dropout > 0,
            "evaluate.view_dropout must be above 0: the two views of a text differ by it",
        ),
    )
    for holds, problem in rules:
        if not holds:
            raise UserError(problem)


def _originals(config: Any) -> list[tuple[str, dict[str, Any]]]:
    """`init` in every way in which a stage makes it fit: label, how it is loaded."""
    if not config.init:
        return []
    sizes, told = weights.reshape.sizes_of(config.model), told_of_init(config)
    found = weights.reshape.sizes_of(weights.model_config(config.init, **told))
    users = [s for s in config.stages if "pretrained" in (s.init_from, s.teacher)]
    ways = {tuple(sorted(s.model.reshape)) for s in users if found != sizes} or {()}
    return [
        (
            "pretrained" if len(ways) == 1 else f"pretrained, {' '.join(rules)}",
            dict(reshape=rules, **sizes, **told),
        )
        for rules in sorted(ways)
    ]


def _features(config: Any, folder: Path, fit: dict[str, Any], sets: Sets) -> Found:
    section = config.evaluate
    is_text = section.test.modality == "text"
    embedder = Embedder(
        folder,
        fit=fit,
        pooling=section.pooling,
        batch_size=section.batch_size,
        precision=config.precision,
        dropout=section.view_dropout if is_text else 0.0,
        mesh=sharding.one_device(),
    )
    views = []
    if sets.source is not None:
        views = [embedder.view(sets.test, number, config.seed) for number in (0, 1)]
    return Found(
        train=None if sets.train is None else embedder.features(sets.train),
        test=embedder.features(sets.test),
        views=tuple(views),
        source=None if sets.source is None else embedder.features(sets.source),
    )


def _accuracies(config: Any, found: Found) -> dict[str, float]:
    if found.train is None:
        return {}
    section, both = config.evaluate, (found.train, found.test)
    arrays = [array for rows in both for array in (rows.embeddings, rows.labels)]
    nearest = knn.accuracy(
        *arrays, k=section.knn_k, temperature=section.knn_temperature
    )
    linear = probe.accuracy(
        *arrays, l2=section.probe_l2, max_iterations=section.probe_max_iterations
    )
    return {"knn": nearest, "probe": linear}


def _drift(config: Any, found: Found, initial: Found) -> dict[str, float]:
    if found.source is None or initial.source is None:
        return {}
    first, second = (view.embeddings for view in found.views)
    features = drift.Features(
        target=found.test.embeddings,
        views=(first, second),
        labels=None if found.train is None else found.test.labels,
        source=found.source.embeddings,
        initial_target=initial.test.embeddings,
        initial_source=initial.source.embeddings,
    )
    return drift.report(features, seed=config.seed)
