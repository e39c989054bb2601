"""Which stage of a run is handed over: the choice by held-out labels. "Do no harm".

Candidates are the stages that train on labels. Each is trained again without a part of the
labels and measured on that part; the test set has no say. With few labels (a held-out fifth
of fewer than FEW examples) five parts take turns: cross-validation, at the learning rate
that the stage's sweep chose. The best candidate is handed over if it beats the first one,
the linear probe of the initial features, by more than a standard error of the paired
difference; else the probe is. The rule is ours.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import logs
from flax_adapt.data import subset
from flax_adapt.evals import verdict
from flax_adapt.experiment import held_out
from flax_adapt.experiment.measuring import watched
from flax_adapt.experiment.measuring.folds import number_folds
from flax_adapt.stage import draws, predictions
from flax_adapt.stage.draws import change_fields
from flax_adapt.stage.result import is_done, read_result
from flax_adapt.stage.stage import Stage
from flax_adapt.train.preemption import Preemption

FEW, FOLDS = 100, 5
RECORD = "handed_over.json"


class Fold(NamedTuple):
    """A part of the labelled examples: the names that are held out, and all others."""

    number: int
    out: tuple[str, ...]
    kept: tuple[str, ...]


def candidates(config: Any) -> list[Any]:
    """Returns the sections of the stages that train on labels, in order."""
    return [section for section in config.stages if held_out.sees_labels(section)]


def choose(config: Any, workdir: Path, preemption: Preemption) -> dict[str, Any]:
    """Returns what is handed over as JSON values, and stores it as handed_over.json.

    stage: its name. held_out: {candidate: {metric, loss}}; {} without labels, where it is
    the last stage. folds, examples: how often labels were held out, and how many in all.
    """
    record, sections = workdir / RECORD, candidates(config)
    if record.exists():
        known: dict[str, Any] = logs.read_json(record)
        names = [one.name for one in sections]
        # With --force there may be other candidates than when it was written.
        if [*known["held_out"]] == names and (names or known["stage"] == _last(config)):
            return known
    if not sections:
        last = config.stages[-1]
        why = f"no labels{_describe_rollback(config, last, workdir)}"
        found = {"stage": last.name, "held_out": {}, "why": why}
    else:
        found = _choose(config, sections, workdir, preemption)
    if jax.process_index() == 0:
        logs.write_json(record, found)
    return found


def _last(config: Any) -> str:
    return str(config.stages[-1].name)


def _describe_rollback(config: Any, section: Any, workdir: Path) -> str:
    """Returns what is said of a stage that hurt and has its initial weights as its result."""
    stage = Stage(config, section, section.seeds[0], workdir)
    watch = read_result(stage).get("watch") if is_done(stage) else None
    if not watch or not watch["rolled_back"]:
        return ""
    return f"; training hurt by {watch['metric']}, so these are its initial weights"


def _choose(
    config: Any, sections: list[Any], workdir: Path, preemption: Preemption
) -> dict[str, Any]:
    folds, arms = make_folds(sections[0].data), {}
    for section in sections:
        runs = [
            loop_of_fold(config, section, fold, len(folds), workdir, preemption)
            for fold in folds
        ]
        arms[section.name] = _join([_read(stage) for stage in runs])
    metric = sections[0].eval.metric
    metric = metric if metric in verdict.MEASURES else "loss"
    name, why = best_arm(arms, metric)
    measured = {one: _measure(arm, metric) for one, arm in arms.items()}
    return {
        **dict(stage=name, metric=metric, why=why, held_out=measured),
        **dict(folds=len(folds), examples=len(arms[name].names)),
    }


def best_arm(arms: dict[str, predictions.Predictions], metric: str) -> tuple[str, str]:
    """Returns (name, reason) of what is handed over; the first arm is the safe one."""
    first, *_ = arms
    scores = {name: _measure(arm, metric) for name, arm in arms.items()}
    best = max(arms, key=lambda name: (scores[name][metric], -scores[name]["loss"]))
    if best == first:
        return first, f"the best by {metric} on held-out labels"
    rows = verdict.table({0: arms[first]}, {0: arms[best]}, metric)[0]
    error = float(np.std(rows, ddof=1) / np.sqrt(len(rows)))
    gain = float(np.mean(rows))
    if gain <= error:
        return first, (
            f"{best} is the best by {metric} on held-out labels, but not by more than a "
            f"standard error ({gain:+.4f}, {error:.4f})"
        )
    return best, (
        f"the best by {metric} on held-out labels: {gain:+.4f} to {first}, standard error "
        f"{error:.4f}"
    )


def _measure(arm: predictions.Predictions, metric: str) -> dict[str, float]:
    values = {name: verdict.MEASURES[name](arm).mean() for name in (metric, "loss")}
    return {name: float(-v if name == "loss" else v) for name, v in values.items()}


def make_folds(config_data: Any) -> list[Fold]:
    """Returns the parts of a labelled data section that are held out in turn.

    One, that of a sweep, or FOLDS with every class in each of them as far as it goes. The
    only example of a class is never held out.
    """
    source = subset.open_chosen(config_data)
    names = tuple(source.names)
    out = held_out.names_held_out(config_data)
    if len(out) >= FEW:
        gone = set(out)
        return [Fold(1, out, tuple(name for name in names if name not in gone))]
    numbers = number_folds(np.asarray(source.labels), FOLDS)
    return [
        Fold(
            fold + 1,
            tuple(n for n, k in zip(names, numbers, strict=True) if k == fold),
            tuple(n for n, k in zip(names, numbers, strict=True) if k != fold),
        )
        for fold in range(FOLDS)
        if np.any(numbers == fold)
    ]


def loop_of_fold(
    config: Any,
    section: Any,
    fold: Fold,
    folds: int,
    workdir: Path,
    preemption: Preemption,
) -> Stage:
    """Trains a candidate without the labels of a fold, unless its sweep did, and tests it."""
    tuned = _tune(section, workdir)
    if folds == 1 and section.sweep is not None:
        for inner in ("", f"/{held_out.FOLDER}"):
            name = f"{section.name}{inner}/lr_{tuned.optim.lr:g}"
            swept = change_fields(tuned, name=name, seeds=section.seeds[:1])
            if predictions.read(workdir / "stages" / name) is not None:
                return Stage(config, swept, section.seeds[0], workdir)
    run = change_fields(
        _move(config, tuned, fold),
        name=f"{section.name}/fold_{fold.number}",
        seeds=section.seeds[:1],
        data=_without(section.data, fold.out),
        eval=change_fields(section.eval, data=_without(section.data, fold.kept)),
        fisher=None,
        sweep=None,
    )
    stage = Stage(config, run, section.seeds[0], workdir)
    with logs.quieten(logging.WARNING):
        watched.train(stage, preemption)
    return stage


def _tune(section: Any, workdir: Path) -> ConfigDict:
    """Returns the section with the learning rate that its sweep chose."""
    if section.sweep is None:
        return change_fields(section)
    folder = workdir / "stages" / section.name
    record = folder / "sweep.json"
    if not record.exists():
        record = folder / f"seed_{section.seeds[0]}" / "sweep.json"
    lr = logs.read_json(record)["lr"]
    return change_fields(section, optim=change_fields(section.optim, lr=lr))


def _move(config: Any, section: Any, fold: Fold) -> Any:
    """Returns the section with references to other candidates' runs of the same fold."""
    moved: dict[str, str] = {}
    for one in candidates(config):
        names = (one.name, *(f"{one.name}/seed_{seed}" for seed in one.seeds))
        moved |= {f"stage:{n}": f"stage:{one.name}/fold_{fold.number}" for n in names}
    return draws.redirect_references(section, moved)


def _without(config_data: Any, names: Sequence[str]) -> ConfigDict:
    base = config_data.subset
    part = change_fields(base, part="without", base=base, names=tuple(names))
    return change_fields(config_data, subset=part)


def _read(stage: Stage) -> predictions.Predictions:
    found = predictions.read(stage.folder)
    assert found is not None, stage.folder
    return found


def _join(parts: list[predictions.Predictions]) -> predictions.Predictions:
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return predictions.Predictions(*columns)
