"""A learning rate chosen among several, by examples that are held out: `sweep` of a stage.

Each of `sweep.lrs` is tried by a run of its own, stages/NAME/lr_LR: the stage with its
first seed, on the part "fit" of its data (`data.subset`), evaluated on "held_out" when it
ends. The best by `sweep.metric` (of equals, that with the lower loss) is the rate of all
seeds, which train on all examples.
"""

import logging
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.stage import loop
from flax_adapt.stage.stage import Stage
from flax_adapt.train.preemption import Preemption

RECORD = "sweep.json"
log = logging.getLogger(__name__)


def chosen(config: Any, section: Any, workdir: Path, preemption: Preemption) -> Any:
    """Returns the stage's section with the best of `sweep.lrs` as `optim.lr`.

    A stage without `sweep` stays as it is. What was measured is kept in
    stages/NAME/sweep.json; a rate at which training breaks down is none.
    """
    if section.sweep is None:
        return section
    record = workdir / "stages" / section.name / RECORD
    if record.exists():
        lr = logs.read_json(record)["lr"]
    else:
        lr = _choose(record, config, section, workdir, preemption)
    return _changed(section, optim=_changed(section.optim, lr=lr))


def _choose(
    record: Path, config: Any, section: Any, workdir: Path, preemption: Preemption
) -> float:
    sweep, tried = section.sweep, []
    for lr in sweep.lrs:
        stage = Stage(config, candidate(section, lr), section.seeds[0], workdir)
        tried.append({"lr": lr, **_measure(stage, preemption)})
    sound = [one for one in tried if one["loss"] is not None]
    if not sound:
        raise UserError(
            f"stage {section.name}: training broke down at each of sweep.lrs={sweep.lrs}; "
            "give lower ones"
        )
    sign = 1 if sweep.mode == "max" else -1
    lr = max(sound, key=lambda one: (sign * one["value"], -one["loss"]))["lr"]
    log.info("%s: lr %g, by %s held out: %s", section.name, lr, sweep.metric, tried)
    if jax.process_index() == 0:
        logs.write_json(record, {"lr": lr, "metric": sweep.metric, "tried": tried})
    return lr


def _measure(stage: Stage, preemption: Preemption) -> dict[str, float | None]:
    """Value and loss on the examples held out; None where training broke down."""
    try:
        result = loop.train_and_evaluate(stage, preemption)
    except loop.NonFiniteError as error:
        log.info("%s", error)
        return {"value": None, "loss": None}
    return {"value": result["value"], "loss": result["eval"]["loss"]}


def candidate(section: Any, lr: float) -> Any:
    """Returns the section of the run that tries `lr`."""
    fit, held_out = (_part(section.data, part) for part in ("fit", "held_out"))
    how = dict(metric=section.sweep.metric, mode=section.sweep.mode, every_steps=0)
    return _changed(
        section,
        name=f"{section.name}/lr_{lr:g}",
        seeds=section.seeds[:1],
        data=fit,
        eval=_changed(section.eval, data=held_out, **how),
        optim=_changed(section.optim, lr=lr),
        fisher=None,
        sweep=None,
    )


def _part(config_data: Any, part: str) -> ConfigDict:
    return _changed(config_data, subset=_changed(config_data.subset, part=part))


def _changed(section: Any, **fields: Any) -> ConfigDict:
    return ConfigDict({**section, **fields})
