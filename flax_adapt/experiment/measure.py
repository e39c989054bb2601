"""Measures the initial weights and every finished stage: few-label accuracy, and drift."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from flax_adapt import data, weights
from flax_adapt.base import checks, logs
from flax_adapt.base.checks import Row
from flax_adapt.base.errors import UserError
from flax_adapt.base.hub import weights_path
from flax_adapt.base.types import Params
from flax_adapt.data import classes
from flax_adapt.evals import drift, embed, knn, probe, sparsity
from flax_adapt.evals.embed import Embedder
from flax_adapt.evals.features import Features
from flax_adapt.experiment import recipe
from flax_adapt.stage.stage import known_options_of_init
from flax_adapt.train import precision, sharding


class Sets(NamedTuple):
    """The opened data of an evaluation section.

    train: None if there are no classes, so that no accuracy is measured. source: None if
    no drift is measured.
    """

    train: data.Examples | None
    test: data.Examples
    source: data.Examples | None


class MeasuredModel(NamedTuple):
    """Features of one model on `Sets`, and its encoder's parameters.

    views: features of the two views of `test`; () where drift is not measured.
    """

    train: Features | None
    test: Features
    views: tuple[Features, ...]
    source: Features | None
    params: Params


class Model(NamedTuple):
    """Weights to be measured: their label, their folder, and the arguments of loading them."""

    label: str
    folder: Path
    fit: dict[str, Any]


def evaluate(config: Any, workdir: Path) -> list[dict[str, Any]]:
    """Returns rows of measures of `init` and of every finished stage; writes `eval.json`.

    Measures are the accuracies of kNN and of a linear probe, the probe's L2 penalty, and
    drift. Where the test data has no classes, drift alone is measured. Where stages resize
    `init` in different ways, there is a row for each way. Features are the final states,
    pooled as `config.evaluate` says ("auto": as by the first model's library). Where that
    has a `source`, drift is measured from the features of `init`; where it has `wide`, also
    sparsity and the accuracy of other probes.
    Each section of `more_evaluations` adds rows that name its data. Raises UserError if no
    stage is finished.
    """
    finished = recipe.measurable_runs(config, workdir)
    if not finished:
        raise UserError(
            f"{workdir} holds no finished stage of this config; run it first"
        )
    models = [
        Model(label, weights_path(config.init), fit)
        for label, fit in _ways_of_init(config)
    ]
    wanted = config.evaluate.stages
    models += [
        Model(stage.label, stage.folder / "export", {})
        for stage in finished
        if not wanted or stage.config.name in wanted
    ]
    sections = (config.evaluate, *config.more_evaluations)
    rows = []
    for section in sections:
        named = {"data": section.test.source} if len(sections) > 1 else {}
        measured = _measure(config, section, models)
        pairs = zip(models, measured, strict=True)
        rows += [{"stage": one.label, **named, **row} for one, row in pairs]
    if jax.process_index() == 0:
        logs.write_json(workdir / "eval.json", rows)
    return rows


def _measure(config: Any, section: Any, models: list[Model]) -> list[dict[str, float]]:
    """Returns the measures of each model; drift is measured from the first model."""
    sets, measured = _open(config, section), []
    pooling = _pooling(section, models[0])
    for start in range(0, len(models), section.models_at_once):
        together = models[start : start + section.models_at_once]
        measured += _features(config, section, pooling, together, sets)
    return [
        {
            **_accuracies(config, section, one),
            **_drift(config, one, measured[0]),
            **_distances(section, one, measured[0]),
        }
        for one in measured
    ]


def _open(config: Any, section: Any) -> Sets:
    if section.models_at_once < 1:
        raise UserError(
            f"evaluate.models_at_once={section.models_at_once} must be at least 1"
        )
    if section.source is not None:
        _check_drift(config, section)
    try:
        test = data.open_examples(section.test, "")
        has_classes = bool(test.class_names)
        train = data.open_examples(section.train, "") if has_classes else None
    except UserError as error:
        raise UserError(
            f"eval needs the data of the config's `evaluate`: {error}"
        ) from None
    if train is not None:
        classes.check_several(train)
        classes.check_same(train, test)
    if section.source is not None:
        return Sets(train, test, data.open_examples(section.source, ""))
    if train is None:
        raise UserError(
            f"eval measures kNN and a linear probe by class, but {section.test.source} "
            "has no classes; give evaluate.source to measure drift alone"
        )
    return Sets(train, test, None)


def _check_drift(config: Any, section: Any) -> None:
    """Raises UserError where drift cannot be measured, which needs `init` and two views."""
    if not config.init:
        raise UserError(
            "evaluate.source asks for drift from the config's `init`, which is empty; "
            "give init=PATH, or set evaluate.source to None"
        )
    checks.run(_VIEW_ROWS, section)


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


def _ways_of_init(config: Any) -> list[tuple[str, dict[str, Any]]]:
    """Returns (label, arguments of loading) for every way in which stages resize `init`.

    A way is a set of the rules in `model.reshape`.
    """
    if not config.init:
        return []
    sizes, init_options = (
        weights.reshape.sizes_of(config.model),
        known_options_of_init(config),
    )
    found = weights.reshape.sizes_of(weights.model_config(config.init, **init_options))
    users = [s for s in config.stages if "pretrained" in (s.init_from, s.teacher)]
    ways = {tuple(sorted(s.model.reshape)) for s in users if found != sizes} or {()}
    return [
        (
            "pretrained" if len(ways) == 1 else f"pretrained, {' '.join(rules)}",
            dict(reshape=rules, **sizes, **init_options),
        )
        for rules in sorted(ways)
    ]


def _pooling(section: Any, first: Model) -> str:
    """Returns the pooling of all models: "auto" is that of the first one's library."""
    how = {name: first.fit[name] for name in ("format", "known") if name in first.fit}
    return weights.resolve_pooling(section.pooling, first.folder, **how)


def _features(
    config: Any, section: Any, pooling: str, models: list[Model], sets: Sets
) -> list[MeasuredModel]:
    """Returns the features of all models, from one pass over each data set."""
    is_text = section.test.modality == "text"
    embedders = [
        Embedder(
            model.folder,
            fit=model.fit,
            pooling=pooling,
            batch_size=section.batch_size,
            precision=precision.dtype_of(config.precision),
            dropout=section.view_dropout if is_text else 0.0,
            mesh=sharding.all_devices(),
        )
        for model in models
    ]

    def of(examples: data.Examples | None, *view: int) -> list[Any]:
        if examples is None:
            return [None] * len(models)
        return embed.extract(embedders, examples, *view)

    views: list[Any] = [(), ()]
    if sets.source is not None:
        views = [of(sets.test, number, config.seed) for number in (0, 1)]
    pairs = list(zip(*views, strict=True)) or [()] * len(models)
    encoders = [one.params["encoder"] for one in embedders]
    columns = (of(sets.train), of(sets.test), pairs, of(sets.source), encoders)
    return [MeasuredModel(*row) for row in zip(*columns, strict=True)]


def _accuracies(config: Any, section: Any, model: MeasuredModel) -> dict[str, float]:
    if model.train is None:
        return {}
    arrays = _arrays(model.train, model.test)
    nearest = knn.accuracy(
        *arrays, k=section.knn_k, temperature=section.knn_temperature
    )
    linear = _probe(config, section, arrays)
    measured = {"knn": nearest, "probe": linear.accuracy, "probe_l2": linear.l2}
    if section.wide is None:
        return measured
    return measured | _wide_measures(config, section, model, linear)


def _probe(config: Any, section: Any, arrays: list[Any]) -> probe.ProbeResult:
    return probe.linear_probe(
        *arrays, l2=section.probe_l2, folds=section.probe_folds, seed=config.seed
    )


def _distances(
    section: Any, model: MeasuredModel, initial: MeasuredModel
) -> dict[str, float]:
    """Returns CKA and distance of weights to the first model; {} unless the section asks."""
    if not section.compare:
        return {}
    return {
        "cka_start": drift.cka(model.test.embeddings, initial.test.embeddings),
        "weight_distance": drift.weight_distance(model.params, initial.params),
    }


def _arrays(train: Features, test: Features) -> list[Any]:
    return [array for rows in (train, test) for array in (rows.embeddings, rows.labels)]


def _wide_measures(
    config: Any, section: Any, model: MeasuredModel, linear: probe.ProbeResult
) -> dict[str, float]:
    """Returns sparsity and the accuracy of probes of wide features (S3)."""
    assert model.train is not None
    bits = [
        rows._replace(embeddings=sparsity.binarise(rows.embeddings))
        for rows in (model.train, model.test)
    ]
    binary = _probe(config, section, _arrays(*bits))
    mlp = probe.mlp_accuracy(
        *_arrays(model.train, model.test),
        hidden=section.wide.mlp_hidden,
        l2=linear.l2,
        max_iterations=section.wide.mlp_max_iterations,
        seed=config.seed,
    )
    return {
        "zeros": sparsity.zeros(model.test.embeddings),
        "binarised": binary.accuracy,
        "binarised_l2": binary.l2,
        "mlp": mlp,
        "mlp_gap": mlp - linear.accuracy,
    }


def _drift(
    config: Any, model: MeasuredModel, initial: MeasuredModel
) -> dict[str, float]:
    if model.source is None or initial.source is None:
        return {}
    first, second = (view.embeddings for view in model.views)
    features = drift.Features(
        target=model.test.embeddings,
        views=(first, second),
        labels=None if model.train is None else model.test.labels,
        source=model.source.embeddings,
        initial_target=initial.test.embeddings,
        initial_source=initial.source.embeddings,
    )
    return drift.report(features, seed=config.seed)
