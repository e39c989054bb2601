"""The choice of a learning rate by held-out examples: the section `sweep` of a stage.

Each of `sweep.lrs` is tried by a run of its own, stages/NAME/lr_LR: the stage with its
first seed, on the part "fit" of its data (`data.subset`), evaluated on "held_out" when it
ends. The best by `sweep.metric` (of equals, that with the lower loss) is the rate of all
seeds, which train on all examples. Where each seed has labels of its own (`stage.draws`),
each chooses its rate by them, in stages/NAME/seed_S.

An earlier stage of the chain may have trained on labels that are held out (`held_out`).
It is then run again without them in stages/NAME/held_out, once for all rates, and the
rates are tried from the weights of that run. If it has a sweep itself, the rate that was
chosen there stays.
"""

import logging
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flax_adapt.base import logs
from flax_adapt.base.errors import NonFiniteError, UserError
from flax_adapt.experiment import held_out
from flax_adapt.experiment.measuring import watched
from flax_adapt.stage import data as inputs
from flax_adapt.stage import draws
from flax_adapt.stage.stage import Stage
from flax_adapt.train.gather import wait_for_files
from flax_adapt.train.preemption import Preemption

RECORD = "sweep.json"
log = logging.getLogger(__name__)


def choose_rate(
    config: Any, section: Any, seed: int, workdir: Path, preemption: Preemption
) -> Any:
    """Returns the section for one seed, with the best of `sweep.lrs` as `optim.lr`.

    Without `sweep` the rate stays. stages/NAME/sweep.json records what was measured. A rate
    at which training breaks down cannot be chosen; raises UserError if it does at all of
    them.
    """
    own = draws.of_seed(config, section, seed)
    if section.sweep is None:
        return own
    tried = _tried(config, section, seed)
    record = workdir / "stages" / tried.name / RECORD
    if record.exists():
        lr = logs.read_json(record)["lr"]
    else:
        lr = _try_all(record, config, tried, workdir, preemption)
    return draws.change_fields(own, optim=draws.change_fields(own.optim, lr=lr))


def _tried(config: Any, section: Any, seed: int) -> Any:
    """Returns the section that tries the rates for a seed, with the name of its folder.

    Seeds with the same labels share the choice of the first one.
    """
    if not draws.has_own_labels(section):
        return draws.of_seed(config, section, section.seeds[0])
    own, name = draws.of_seed(config, section, seed), draws.label(section, seed)
    return draws.change_fields(own, name=name, seeds=(seed,))


def _try_all(
    record: Path, config: Any, section: Any, workdir: Path, preemption: Preemption
) -> float:
    sweep, tried = section.sweep, []
    inputs.check_test_classes(Stage(config, section, section.seeds[0], workdir))
    start = _rerun_chain(config, section, workdir, preemption)
    for lr in sweep.lrs:
        stage = Stage(config, candidate(start, lr), section.seeds[0], workdir)
        tried.append({"lr": lr, **_measure(stage, preemption)})
    sound = [one for one in tried if one["loss"] is not None]
    if not sound:
        raise UserError(
            f"stage {section.name}: training broke down at each of sweep.lrs={sweep.lrs}; "
            "give lower ones"
        )
    sign = 1 if sweep.mode == "max" else -1
    lr = max(sound, key=lambda one: (sign * one["value"], -one["loss"]))["lr"]
    found = ", ".join(f"{one['lr']:g}: {_describe_value(one)}" for one in tried)
    log.info("%s: lr %g, by %s held out (%s)", section.name, lr, sweep.metric, found)
    _warn_of_edge(section, lr)
    if jax.process_index() == 0:
        logs.write_json(record, {"lr": lr, "metric": sweep.metric, "tried": tried})
    wait_for_files(f"sweep {section.name}")
    return lr


def _describe_value(one: dict[str, float | None]) -> str:
    return "broke down" if one["value"] is None else f"{one['value']:.4f}"


def _warn_of_edge(section: Any, lr: float) -> None:
    """Warns if the best rate is the lowest or highest tried: a better one may lie beyond it."""
    lrs = section.sweep.lrs
    for edge, end in (("lowest", min(lrs)), ("highest", max(lrs))):
        if lr == end and len(lrs) > 1:
            log.warning(
                "%s: the best rate, %g, is the %s of sweep.lrs=%s: a better one may lie "
                "beyond it",
                *(section.name, lr, edge, lrs),
            )


def _rerun_chain(
    config: Any, section: Any, workdir: Path, preemption: Preemption
) -> Any:
    """Runs the earlier stages again that trained on labels that are held out.

    Returns the section with which the rates are tried: it starts from those runs.
    """
    again = held_out.list_reruns(config, section)
    if not again and not held_out.replays_held_out(section):
        return section
    names = held_out.names_held_out(section.data)
    folder = f"{section.name}/{held_out.FOLDER}"
    moved: dict[str, str] = {}
    for one in again:
        tuned = choose_rate(config, one.section, one.seed, workdir, preemption)
        label = f"{folder}/{one.reference.removeprefix('stage:')}"
        less = held_out.exclude_examples(tuned, names, section.data)
        fields = dict(name=label, seeds=(one.seed,), eval=None, sweep=None)
        run = draws.change_fields(draws.redirect_references(less, moved), **fields)
        with logs.quieten(logging.WARNING):
            watched.train(Stage(config, run, one.seed, workdir), preemption)
        moved[one.reference] = f"stage:{label}"
    start = draws.redirect_references(section, moved)
    replay = held_out.exclude_examples(section, names, section.data).replay
    return draws.change_fields(start, name=folder, replay=replay)


def _measure(stage: Stage, preemption: Preemption) -> dict[str, float | None]:
    """Returns value and loss on the held-out examples; None if training broke down."""
    try:
        with logs.quieten(logging.WARNING):
            result = watched.train(stage, preemption)
    except NonFiniteError as error:
        log.info("%s", error)
        return {"value": None, "loss": None}
    return {"value": result["value"], "loss": result["eval"]["loss"]}


def candidate(section: Any, lr: float) -> Any:
    """Returns the section of the run that tries `lr`."""
    fit, test = (_part(section.data, part) for part in ("fit", "held_out"))
    how = dict(metric=section.sweep.metric, mode=section.sweep.mode, every_steps=0)
    return draws.change_fields(
        section,
        name=f"{section.name}/lr_{lr:g}",
        seeds=section.seeds[:1],
        data=fit,
        eval=draws.change_fields(section.eval, data=test, **how),
        optim=draws.change_fields(section.optim, lr=lr),
        fisher=None,
        sweep=None,
    )


def _part(config_data: Any, part: str) -> ConfigDict:
    subset = draws.change_fields(config_data.subset, part=part)
    return draws.change_fields(config_data, subset=subset)
