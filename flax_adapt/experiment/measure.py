"""Measures the initial weights and every finished stage: few-label accuracy, and drift."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_adapt import weights
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.base.hub import weights_path
from flax_adapt.data import subset
from flax_adapt.data.source import keep_open
from flax_adapt.evals import drift
from flax_adapt.evals.features import Features
from flax_adapt.experiment import recipe
from flax_adapt.experiment.measuring import (
    drawn,
    embeddings,
    kept,
    leaks,
    masked,
    seen,
    verdicts,
)
from flax_adapt.experiment.measuring.answers import Answers, LabelledSets
from flax_adapt.experiment.measuring.embeddings import MeasuredModel, Model
from flax_adapt.experiment.measuring.sets import Sets, open_sets
from flax_adapt.stage import draws
from flax_adapt.stage.stage import known_options_of_init

log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """Rows of measures of several models, verdicts against the first, and their answers.

    notes: lines on test examples that kNN and probes were fitted to.
    """

    rows: list[dict[str, float]]
    entries: list[dict[str, Any]]
    on_target: list[Answers | None]
    on_source: list[Answers | None]
    notes: tuple[str, ...] = ()


def evaluate(config: Any, workdir: Path) -> list[dict[str, Any]]:
    """Returns rows of measures of `init` and of every finished stage; writes `eval.json`.

    Measures are the accuracies of kNN, of a linear probe (with its L2 penalty) and of few
    shots, means over draws of labels; RankMe; drift; and the masked loss, see `masked`.
    Where there are classes, each model is compared with the first one:
    `measuring.verdicts`. Where the test data has no classes, drift and RankMe alone are
    measured. Where stages resize `init` in different ways, there is a row for each way.
    Features are the final states, pooled as `config.evaluate` says ("auto": as by the first
    model's library). Where that has a `source`, drift is measured from the features of
    the first model, and the accuracies on the source, too, if it has classes; where it has
    `wide`, also sparsity and the accuracy of other probes.
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
        for label, fit in ways_of_init(config)
    ]
    wanted = config.evaluate.stages
    models += [
        Model(stage.label, stage.folder / "export", {}, stage=stage)
        for stage in finished
        if not wanted or stage.config.name in wanted
    ]
    sections = (config.evaluate, *config.more_evaluations)
    rows, judged = [], []
    for section in sections:
        named = {"data": section.test.source} if len(sections) > 1 else {}
        with keep_open():
            measured = measure_models(config, section, models, workdir)
        for note in measured.notes:
            log.warning("%s: %s", section.test.source, note)
        pairs = zip(models, measured.rows, strict=True)
        rows += [{"stage": one.label, **named, **row} for one, row in pairs]
        judged += measured.entries
    if jax.process_index() == 0:
        logs.write_json(workdir / "eval.json", rows)
        verdicts.store(config, workdir, judged)
    return rows


def measure_models(
    config: Any, section: Any, models: list[Model], workdir: Path | None = None
) -> Measured:
    """Returns what an evaluation section measures of each model.

    Drift is measured from the first model. workdir: keeps features, see `kept`.
    """
    sets, measured = open_sets(config, section), []
    known: subset.Identities = {}
    is_probed = sets.train is not None
    probed = seen.find_in_probes(section, known) if is_probed else None
    pooling = _pooling(section, models[0])
    for start in range(0, len(models), section.models_at_once):
        together = models[start : start + section.models_at_once]
        measured += embeddings.extract(
            config, section, pooling, together, sets, workdir
        )
    how = config, section, kept.find_folder(workdir)
    on_target = [_answer(*how, one, sets) for one in measured]
    on_source = [_answer_source(*how, one, sets) for one in measured]
    rows = [
        {
            **_accuracies(*how, one, sets, target, source),
            **_drift(config, one, measured[0]),
            **_distances(section, one, measured[0]),
            **masked.measure(
                config, model, sets.test.examples, section.batch_size, workdir
            ),
        }
        for model, one, target, source in zip(
            models, measured, on_target, on_source, strict=True
        )
    ]
    runs, entries = [one.run for one in models], []
    for found, one, domain in (
        (on_target, section.test, verdicts.TARGET),
        (on_source, section.source, verdicts.SOURCE),
    ):
        whole = [one for one in found if one is not None]
        if whole:
            drawn_anew = domain == verdicts.TARGET and len(sets.test.rows) > 1
            compared = verdicts.compare(
                runs, whole, one.source, domain, is_drawn=drawn_anew
            )
            entries += [
                _add_shared(config, entry, section, probed, known) for entry in compared
            ]
    notes = (seen.describe(probed),) if probed else ()
    return Measured(rows, entries, on_target, on_source, notes)


def ways_of_init(config: Any) -> list[tuple[str, dict[str, Any]]]:
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
    how = weights.options_in(first.fit)
    return weights.resolve_pooling(section.pooling, first.folder, **how)


def _add_shared(
    config: Any,
    entry: dict[str, Any],
    section: Any,
    probed: dict[str, Any] | None,
    known: subset.Identities,
) -> dict[str, Any]:
    """Returns an entry with what training, and then kNN and probes, have seen of the test."""
    if entry["domain"] != verdicts.TARGET:
        return entry
    stage = entry["stage"]
    held = leaks.find_shared(config, stage, section.test, known)
    more: dict[str, Any] = {"transductive": held} if held else {}
    trained = seen.find_in_model(config, stage, section, known)
    both = [one for one in (trained, probed) if one is not None]
    return {**entry, **more, **({"seen": both} if both else {})}


def _answer(
    config: Any, section: Any, folder: Path | None, model: MeasuredModel, sets: Sets
) -> Answers | None:
    """Returns what the features say about the target's test examples; None: no classes."""
    labelled = _labelled_sets(model, sets)
    return kept.answer(folder, section, config.seed, labelled) if labelled else None


def _labelled_sets(model: MeasuredModel, sets: Sets) -> list[LabelledSets]:
    if model.train is None or sets.train is None:
        return []
    found = []
    for train_rows, test_rows in zip(sets.train.rows, sets.test.rows, strict=True):
        rows = _leave_out(model.learnt, sets.test.examples.names, test_rows)
        test = drawn.take(model.test, rows)
        train, names = drawn.take(model.train, train_rows), sets.test.examples
        found.append(LabelledSets(train, test, drawn.names_of(names, test)))
    if not any(len(one.names) for one in found):
        raise UserError(
            f"eval: a stage was trained on the labels of every test example of "
            f"{sets.test.examples.config.source}: give evaluate.test other ones"
        )
    return found


def _leave_out(
    learnt: frozenset[str], names: Sequence[str], rows: np.ndarray
) -> np.ndarray:
    """Returns the rows (int64 [m]) whose names are not in `learnt`."""
    if not learnt:
        return rows
    return np.array([row for row in rows if names[int(row)] not in learnt], np.int64)


def _answer_source(
    config: Any, section: Any, folder: Path | None, model: MeasuredModel, sets: Sets
) -> Answers | None:
    """Returns what the features say about one half of the source, from the other half.

    None where the source has no classes, or a class for each half is missing.
    """
    if model.source is None or sets.source is None or not sets.source.class_names:
        return None
    labels = model.source.labels
    known = np.flatnonzero(labels >= 0) if labels.dtype.kind == "i" else np.array([])
    halves = [known[half] for half in drawn.split_halves(labels[known.astype(int)])]
    if min(len(np.unique(labels[half])) for half in halves) < 2:
        return None
    fit, test = (Features(*(c[half] for c in model.source)) for half in halves)
    names = drawn.names_of(sets.source, test)
    near = dict(knn_k=min(section.knn_k, len(fit.labels)), shots=())
    changed = draws.change_fields(section, **near)
    halves_of = [LabelledSets(fit, test, names)]
    return kept.answer(folder, changed, config.seed, halves_of)


def _accuracies(
    config: Any,
    section: Any,
    folder: Path | None,
    model: MeasuredModel,
    sets: Sets,
    target: Answers | None,
    source: Answers | None,
) -> dict[str, float]:
    found = {} if target is None else target.accuracies()
    if target is not None and section.wide is not None:
        first = next(one for one in _labelled_sets(model, sets) if len(one.names))
        wide = kept.measure_wide(folder, section, config.seed, first, target.l2)
        found |= {**wide, "mlp_gap": wide["mlp"] - found["probe"]}
    if source is not None:
        found |= {f"{k}_source": v for k, v in source.accuracies().items()}
    return {**found, "rankme": drift.rankme(model.test.embeddings)}


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
