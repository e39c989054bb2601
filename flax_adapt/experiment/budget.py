"""Budgets in time: every kind of stage is compiled and timed, and the time is shared.

The time that is left after what does not depend on steps (opening, evaluation, export of
every run, each rate and each held-out part included) is shared: a half, at most, goes to
fine-tuning, which takes no more steps than the rule of the config; the other stages have
the rest.
"""

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import workdirs
from flax_adapt.experiment import device_memory, forgetting, handover, held_out, timing
from flax_adapt.experiment.timing import Cost
from flax_adapt.plan import plans
from flax_adapt.stage import programs
from flax_adapt.train import optim
from flax_adapt.train.preemption import Preemption

FOLDER = workdirs.TIMING
# The share of a budget that is planned for; the rest is for what was not timed (ours).
PLANNED = 0.95
# The share of the time for steps that fine-tuning takes at most (ours).
FINETUNING = 0.5
log = logging.getLogger(__name__)


class Work(NamedTuple):
    """A stage of a recipe: its cost, how often it is run in all, and its kind of steps.

    steps: 0 for a stage that has one step whatever the budget. programs: how many are
    compiled besides those of the timed runs, which the runs of the recipe share unless their
    number of steps or rate is a constant of the program (`programs.serves_any_length`).
    """

    name: str
    cost: Cost
    runs: int
    steps: int
    tunes: bool
    programs: int = 0

    def fixed_seconds(self) -> float:
        """Returns the seconds of all runs beside their steps."""
        return self.runs * self.cost.fixed + self.programs * self.cost.compile


def list_work(config: Any, workdir: Path, preemption: Preemption) -> list[Work]:
    """Returns the work of every stage; each kind of stage is compiled and timed once.

    No cache of earlier runs is used, so that the seconds of compilation are those of a first
    run.
    """
    folder, found = workdir / FOLDER, dict[str, Cost]()
    kinds, known = dict[str, int](), set[tuple[int, float]]()
    try:
        for number, kind in enumerate(plans.group_stages(config)):
            with logs.quieten(logging.ERROR), timing.compile_cold():
                cost = timing.time_stage(config, kind.stage.config, folder, preemption)
            log.info(
                "%s: %.3g s a step, %.3g s beside steps, %.3g s of compilation",
                *(", ".join(kind.names), cost.step, cost.fixed, cost.compile),
            )
            found |= dict.fromkeys(kind.names, cost)
            kinds |= dict.fromkeys(kind.names, number)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    work = []
    for section in config.stages:
        number, cost = kinds[section.name], found[section.name]
        own = {(number, lr) for lr in list_constant_rates(section)}
        own |= {(number, 0.0)} if cost.tabulates else set()
        new = own - known
        known |= own
        work.append(_describe_work(config, section, cost, len(new)))
    return [*work, *_judge_source(config, found)]


def list_constant_rates(section: Any) -> tuple[float, ...]:
    """Returns the learning rates for which the runs of a stage compile a program of their own.

    (0.0,) is one program for all rates, () none: that of the timed run serves them all.
    """
    if section.optim.solve is not None or programs.serves_any_length(section):
        return ()
    rated = optim.takes_rate(section.optim, section.num_steps)
    if rated or section.sweep is None:
        return (0.0,) if rated else (section.optim.lr,)
    return tuple(section.sweep.lrs)


def _describe_work(config: Any, section: Any, cost: Cost, programs: int) -> Work:
    return Work(
        section.name,
        cost,
        count_runs(config, section),
        0 if section.optim.solve is not None else section.num_steps,
        held_out.sees_labels(section),
        programs,
    )


def _judge_source(config: Any, costs: dict[str, Cost]) -> list[Work]:
    """Returns the work of the verdict on the source, if there is one, as an upper bound.

    An example takes no longer than in a training step; compilation is that of the stage.
    """
    passes, first = forgetting.count_passes(config), config.stages[0]
    if not passes:
        return []
    cost = costs[first.name]
    seconds = cost.fixed + passes * cost.step / first.batch_size
    return [Work("source", Cost(seconds, 0.0, 0), 1, 0, False)]


def count_runs(config: Any, section: Any) -> int:
    """Returns how often a stage is trained: its seeds, rates, and held-out parts."""
    if not held_out.sees_labels(section):
        return len(section.seeds)
    folds = len(handover.make_folds(section.data))
    rates = 0 if section.sweep is None else len(section.sweep.lrs)
    parts = folds if folds > 1 or not rates else 0
    # A sweep of a stage that starts from this one trains it once more.
    again = [
        one
        for one in config.stages
        if one.sweep is not None and one.init_from == f"stage:{section.name}"
    ]
    return len(section.seeds) + rates + parts + len(again)


def seconds_of(work: list[Work]) -> float:
    """Returns the seconds that all runs of a recipe take."""
    steps = (one.runs * max(one.steps, 1) * one.cost.step for one in work)
    return sum(steps) + sum(one.fixed_seconds() for one in work)


def share(work: list[Work], seconds: float, spent: float, typed: str) -> dict[str, int]:
    """Returns the arguments steps, new_part_steps and finetune_steps for a time.

    seconds: what is left after `spent` seconds. typed: the budget as it was given. Raises
    UserError for a time that the evaluations and exports alone would fill.
    """
    fixed = sum(one.fixed_seconds() for one in work)
    tuned = sum(one.runs * one.cost.step for one in work if one.tunes and one.steps)
    trained = sum(_proportion(one) * one.cost.step for one in work if not one.tunes)
    left = PLANNED * seconds - fixed
    least = (fixed + tuned + trained) / PLANNED
    if left < tuned + trained:
        raise UserError(
            f"budget={typed} is too short for one step of every stage, with its evaluation "
            f"and export, on {device_memory.name_devices()}: give at least "
            f"{(spent + least) / 60 + 0.5:.0f}m, or fewer data"
            f"{', or method=none' if trained else ''}"
        )
    rule = max((one.steps for one in work if one.tunes), default=0)
    finetune = 0
    if tuned:
        part = FINETUNING if trained else 1.0
        most = rule if trained else left / tuned
        finetune = max(1, int(min(part * left / tuned, most)))
    found = {"finetune_steps": finetune} if finetune else {}
    if not trained:
        return found
    count = max(1, int((left - finetune * tuned) / trained))
    found["steps"] = count
    if any(_is_new_part(one) for one in work):
        found["new_part_steps"] = max(1, count // NEW_PART)
    return found


# A new decoder or head is trained for this part of the steps of the others (ours).
NEW_PART = 5


def _is_new_part(one: Work) -> bool:
    return one.name.endswith("_warmup")


def _proportion(one: Work) -> float:
    return 1 / NEW_PART if _is_new_part(one) else 1.0
