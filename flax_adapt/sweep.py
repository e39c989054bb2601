"""A learning rate chosen among several, by examples that are held out: `sweep` of a stage.

Each of `sweep.lrs` is tried by a run of its own, stages/NAME/lr_LR: the stage with its
first seed, on the part "fit" of its data (`data.subset`), evaluated on "held_out" when it
ends. The one with the lowest loss there is the rate of all seeds, which train on all
examples. Not by accuracy (ours): what is held out of few labels is too few to count.
"""

import logging
import math
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flax_adapt import logs, loop
from flax_adapt.errors import UserError
from flax_adapt.preemption import Preemption
from flax_adapt.stage import Stage

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
    if not record.exists():
        _record(record, config, section, workdir, preemption)
    lr = logs.read_json(record)["lr"]
    return _changed(section, optim=ConfigDict({**section.optim, "lr": lr}))


def _record(
    record: Path, config: Any, section: Any, workdir: Path, preemption: Preemption
) -> None:
    measured = {}
    for lr in section.sweep.lrs:
        stage = Stage(config, candidate(section, lr), section.seeds[0], workdir)
        measured[lr] = _loss(stage, preemption)
    lr = min(measured, key=lambda rate: measured[rate])
    if measured[lr] == math.inf:
        raise UserError(
            f"stage {section.name}: training broke down at each of sweep.lrs="
            f"{section.sweep.lrs}; give lower ones"
        )
    log.info("%s: lr %g, of held-out losses %s", section.name, lr, measured)
    if jax.process_index() == 0:
        tried = [
            {"lr": rate, "loss": loss if loss < math.inf else None}
            for rate, loss in measured.items()
        ]
        logs.write_json(record, {"lr": lr, "tried": tried})


def _loss(stage: Stage, preemption: Preemption) -> float:
    """The loss on the examples held out; infinite where training broke down."""
    try:
        return loop.train_and_evaluate(stage, preemption)["eval"]["loss"]
    except loop.NonFiniteError as error:
        log.info("%s", error)
        return math.inf


def candidate(section: Any, lr: float) -> Any:
    """Returns the section of the run that tries `lr`."""
    fit, held_out = (_part(section.data, part) for part in ("fit", "held_out"))
    return _changed(
        section,
        name=f"{section.name}/lr_{lr:g}",
        seeds=section.seeds[:1],
        data=fit,
        eval=ConfigDict({**section.eval, "data": held_out, "every_steps": 0}),
        optim=ConfigDict({**section.optim, "lr": lr}),
        fisher=None,
        sweep=None,
    )


def _part(config_data: Any, part: str) -> ConfigDict:
    subset = ConfigDict({**config_data.subset, "part": part})
    return ConfigDict({**config_data, "subset": subset})


def _changed(section: Any, **fields: Any) -> ConfigDict:
    return ConfigDict({**section, **fields})
