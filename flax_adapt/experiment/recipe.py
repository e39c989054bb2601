"""Runs an experiment: its stages in order, each once; continues wherever it stopped."""

import contextlib
import json
import logging
import statistics
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flax_adapt import data
from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import addresses, workdirs
from flax_adapt.data import base
from flax_adapt.evals import verdict
from flax_adapt.experiment import card, held_out, lock, provenance, sweep, verdicts
from flax_adapt.experiment.measuring import alike, leaks, seen, watched
from flax_adapt.experiment.measuring import verdicts as feature_verdicts
from flax_adapt.plan import fitting
from flax_adapt.stage import check, draws, loop
from flax_adapt.stage.stage import Stage
from flax_adapt.train import precision
from flax_adapt.train.preemption import Preemption

log = logging.getLogger(__name__)
# Sections that change no number of a run: those that `flax-adapt eval` alone reads, which
# measures everything each time, the mesh, which follows from the machines at hand, and
# where metrics are shown.
_FREE_SECTIONS = ("evaluate", "more_evaluations", "transfer", "mesh", "log")
COLUMNS = ("stage", "metric", "seeds", "mean", "std", "gain", "seconds")


def run(config: Any, workdir: Path, *, force: bool) -> list[dict[str, Any]]:
    """Runs every stage that is not finished; returns the rows of `results.json`.

    A row is {stage, metric, seeds, values, mean, std, seconds, gain, export}, and has the
    verdicts of `verdicts.add`. Raises
    UserError for a workdir that holds another config, with the difference, unless
    `force`.
    """
    config = _as_begun(settle_precision(config, workdir), workdir)
    check.experiment(config)
    held_out.check_sweeps(config)
    _check_sources(config, workdir)
    with_labels, results = seen.find_by_stage(config), []
    with only_run(workdir), Preemption() as preemption:
        _claim(config, workdir, force)
        provenance.note_start(workdir)
        workdirs.push()  # what cannot be written is said before anything is trained
        for section in config.stages:
            for seed in section.seeds:
                tuned = sweep.choose_rate(config, section, seed, workdir, preemption)
                stage = Stage(config, tuned, seed, workdir)
                results.append(watched.train(stage, preemption))
                _write(workdir, rows := summarize(config, results, workdir))
        rows = leaks.add_shared(config, rows, with_labels)
        rows = verdicts.add(config, rows, results, workdir)
        _write(workdir, rows := feature_verdicts.add_features(rows, workdir))
        card.write_cards(config, rows, workdir)
    return rows


def stage_runs(config: Any, workdir: Path) -> list[Stage]:
    """Returns every stage with every one of its seeds, in order."""
    runs = (_seeds(config, section, workdir) for section in config.stages)
    return [stage for stages in runs for stage in stages]


def _seeds(config: Any, section: Any, workdir: Path) -> list[Stage]:
    return [
        Stage(config, draws.of_seed(config, section, seed), seed, workdir)
        for seed in section.seeds
    ]


def is_done(config: Any, workdir: Path) -> bool:
    """Returns whether every stage is finished."""
    return len(finished_runs(config, workdir)) == len(stage_runs(config, workdir))


def finished_runs(config: Any, workdir: Path) -> list[Stage]:
    """Returns those of `stage_runs` that are finished."""
    runs = stage_runs(config, workdir)
    return [stage for stage in runs if loop.is_done(stage)]


def measurable_runs(config: Any, workdir: Path) -> list[Stage]:
    """Returns the finished stages, whose exported weights can be measured.

    Raises UserError where a stage has a result but no export.
    """
    for stage in stage_runs(config, workdir):
        if (stage.folder / loop.RESULT).exists() and not loop.is_done(stage):
            raise UserError(
                f"stage {stage.label} has a result, but its export is missing from "
                f"{stage.folder}; `flax-adapt run` with the same config makes it again"
            )
    return finished_runs(config, workdir)


def only_run(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which process 0 holds the workdir for all processes of a run."""
    is_first = jax.process_index() == 0
    return lock.hold(workdir) if is_first else contextlib.nullcontext()


def _check_sources(config: Any, workdir: Path) -> None:
    """Opens the data of every stage that is not finished.

    A missing split is thus reported now, not hours later, and so are classes that watched
    metrics need of the source.
    """
    opened: list[Any] = []
    runs = stage_runs(config, workdir)
    for stage in runs:
        config_stage = stage.config
        sections = [config_stage.data]
        if config_stage.eval is not None:
            sections.append(config_stage.eval.data)
        if config_stage.replay is not None:
            sections += data.replay_sections(config_stage.replay)
        sections += watched.measured_sections(config, config_stage)
        for section in sections:
            where = {name: section[name] for name in ("source", "data_dir", "split")}
            if where not in opened and not loop.is_done(stage):
                data.source.open_source(section)
                opened.append(where)
    watched.check_source(stage for stage in runs if not loop.is_done(stage))


def _as_begun(config: Any, workdir: Path) -> Any:
    """Returns the config, with fixed labels where the workdir was begun with these.

    Before `data.subset.draw` all seeds of a stage had the same labels.
    """
    path, draw = workdir / "config.json", '"draw": "each_seed"'
    if not path.exists() or not _has_begun(workdir):
        return config
    # A damaged file is told by `_claim`.
    if '"draw": "' in path.read_text("utf-8", errors="replace"):
        return config
    if draw in json.dumps(configs.plain(config)):
        log.info("%s was begun with labels=fixed and goes on with them", workdir)
        return draws.fix(config)
    return config


def settle_precision(config: Any, workdir: Path) -> Any:
    """Returns the config with the precision that "auto" means: of the workdir, if it has one.

    So a run that goes on on other devices keeps its numbers.
    """
    path = workdir / "config.json"
    if config.precision == precision.AUTO and path.exists() and _has_begun(workdir):
        begun = logs.read_json(path)
        kept = begun.get("precision") if isinstance(begun, dict) else None
        if kept in precision.PRECISIONS:  # else `_claim` says what is damaged
            config = ConfigDict({**config, "precision": kept}).lock()
    return precision.settle_config(config)


def _has_begun(workdir: Path) -> bool:
    return any(workdir.glob("stages/**/checkpoints/*"))


def _claim(config: Any, workdir: Path, force: bool) -> None:
    """Stores the config of a workdir; raises UserError if it holds another one.

    The same config continues, and one that differs in what `_drop_free` leaves out. `force`
    allows another one, and so does a workdir without any checkpoint.
    """
    path, new = workdir / "config.json", configs.plain(config)
    if path.exists() and _has_begun(workdir) and not force:
        changes = configs.difference(*map(_drop_free, (logs.read_json(path), new)))
        if changes:
            raise UserError(
                f"{workdir} was made with another config ({'; '.join(changes)}); use "
                "another --workdir, or --force to go on with the new config (finished "
                "stages stay as they are)"
            )
    if jax.process_index() == 0:
        logs.write_json(path, new)


def _drop_free(config: Any) -> Any:
    """Returns a plain config without what changes no number.

    These are _FREE_SECTIONS, fields of data sections, and how the step of a stage saves
    memory, which changes nothing but rounding, as the mesh (`_drop_savings`).
    """
    if not isinstance(config, dict):  # a damaged file
        return config
    parts = {name: part for name, part in config.items() if name not in _FREE_SECTIONS}
    kept = base.drop_free(parts)
    stages = kept.get("stages")
    if not (isinstance(stages, list) and all(isinstance(one, dict) for one in stages)):
        return kept
    return {**kept, "stages": [_drop_savings(one) for one in stages]}


def _drop_savings(stage: dict[str, Any]) -> dict[str, Any]:
    """Returns a stage without `memory` and the number of parts of a batch.

    Of mixed examples the parts stay: each mixes its own ones alone.
    """
    optim = stage.get("optim")
    if isinstance(optim, dict) and not fitting.mixes(stage):
        stage = {**stage, "optim": {**optim, "accum_steps": None}}
    return {**stage, "memory": None}


def _row(name: str, results: list[dict[str, Any]], workdir: Path) -> dict[str, Any]:
    values = [result["value"] for result in results]
    named = {"stage": name, "seeds": [result["seed"] for result in results]}
    export = card.exported_folder(named, workdir)
    return {
        "stage": name,
        "metric": results[0]["metric"],
        "seeds": named["seeds"],
        "values": values,
        "mean": statistics.fmean(values),
        # The spread over seeds: the sample's standard deviation (n - 1).
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "seconds": sum(result["seconds"] for result in results),
        "export": addresses.restore(str(export)),
        **_watched(results),
    }


def _watched(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns {"watch": what each run has measured, without the history}; {} without any."""
    found = [result.get("watch") for result in results]
    if not any(found):
        return {}
    return {"watch": [one and watched.drop_history(one) for one in found]}


def summarize(
    config: Any, results: list[dict[str, Any]], workdir: Path
) -> list[dict[str, Any]]:
    """Returns one row for each stage.

    `gain`: how much better its mean is than that of the stage of `alike.find_base` (of a
    loss or a perplexity: how much lower), 0 of the first with its metric and data.
    """
    sections = {section.name: section for section in config.stages}
    rows: dict[str, dict[str, Any]] = {}
    for name, earlier in alike.list_earlier(results).items():
        same = [result for result in results if result["stage"] == name]
        rows[name] = row = _row(name, same, workdir)
        if same[0]["eval"]:
            base = alike.find_base(sections, name, earlier) or name
            gain = row["mean"] - rows[base]["mean"]
            row["gain"] = gain if same[0]["mode"] == "max" else -gain
    return [*rows.values()]


def _write(workdir: Path, rows: list[dict[str, Any]]) -> None:
    if jax.process_index() == 0:
        logs.write_json(workdir / "results.json", rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as text: mean and spread over seeds, gain and time of each stage."""
    shown = [
        {**row, "seeds": len(row["seeds"]), "seconds": round(row["seconds"], 1)}
        for row in rows
    ]
    bases = {row["verdict"]["against"] for row in rows if "verdict" in row}
    for row in shown:
        if "verdict" in row:
            row |= {"against": row["verdict"]["against"]} if len(bases) > 1 else {}
            row["verdict"] = verdict.short(row["verdict"])
        if "transductive" in row:
            row["pool"] = "transductive"
        if "seen" in row:
            row["seen"] = seen.shorten(row["seen"])
        if "watch" in row:
            row["kept"] = watched.shorten(row["watch"])
    names = ("pool", "seen", "kept", "against", "verdict")
    more = [name for name in names if any(name in row for row in shown)]
    return logs.format_table(shown, (*COLUMNS, *more))
