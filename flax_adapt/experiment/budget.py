"""Budgets in time: every kind of stage is compiled and timed, and the time is shared.

The time that is left after what does not depend on steps (opening, evaluation, export of
every run, each rate and each held-out part included) is shared: a half, at most, goes to
fine-tuning, which takes no more steps than the rule of the config; the other stages have
the rest.
"""

import contextlib
import logging
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flax_adapt.base.errors import UserError
from flax_adapt.experiment import forgetting, handover, held_out
from flax_adapt.plan import plans
from flax_adapt.stage import loop, shapes
from flax_adapt.stage.draws import change_fields
from flax_adapt.stage.stage import Stage
from flax_adapt.train import sharding
from flax_adapt.train import step as steps
from flax_adapt.train.preemption import Preemption

FOLDER, TIMED_STEPS = "timing", 6
# The share of a budget that is planned for; the rest is for what was not timed (ours).
PLANNED = 0.95
# The share of the time for steps that fine-tuning takes at most (ours).
FINETUNING = 0.5
log = logging.getLogger(__name__)


class Cost(NamedTuple):
    """Seconds of a run of a stage beside its steps, seconds of a step, bytes of a device.

    compile: seconds by which the first run takes longer than another with the same program.
    """

    fixed: float
    step: float
    bytes: int
    compile: float = 0.0


class Work(NamedTuple):
    """A stage of a recipe: its cost, how often it is run in all, and its kind of steps.

    steps: 0 for a stage that has one step whatever the budget. programs: how many are
    compiled, one for each learning rate that no earlier stage of the kind has.
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

    The steps of a run are other programs than the timed ones (their number is a constant),
    which no cache has. So none is used here.
    """
    folder, found = workdir / FOLDER, dict[str, Cost]()
    kinds, known = dict[str, int](), set[tuple[int, float]]()
    for number, kind in enumerate(plans.group_stages(config)):
        with _quiet(), _compile_cold():
            cost = time_stage(config, kind.stage.config, folder, preemption)
        log.info(
            "%s: %.3g s a step, %.3g s beside steps, %.3g s of compilation",
            *(", ".join(kind.names), cost.step, cost.fixed, cost.compile),
        )
        found |= dict.fromkeys(kind.names, cost)
        kinds |= dict.fromkeys(kind.names, number)
    shutil.rmtree(folder, ignore_errors=True)
    work = []
    for section in config.stages:
        programs = {(kinds[section.name], lr) for lr in _list_rates(section)} - known
        known |= programs
        work.append(_describe_work(config, section, found[section.name], len(programs)))
    return [*work, *_judge_source(config, found)]


def _list_rates(section: Any) -> tuple[float, ...]:
    """Returns the learning rates of a stage; each is a constant of a program of its own."""
    return (section.optim.lr,) if section.sweep is None else tuple(section.sweep.lrs)


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what short runs log, such as the report on weights, from the user."""
    logger = logging.getLogger("flax_adapt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _compile_cold() -> Iterator[None]:
    """Compiles every program anew, although another run may have stored it."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


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


def time_stage(config: Any, section: Any, folder: Path, preemption: Preemption) -> Cost:
    """Returns the cost of a stage, by two short runs of it that start from `init`.

    The second one has the program of the first. A head that is solved for is run once, as
    it takes longer than its compilation.
    """
    shutil.rmtree(folder, ignore_errors=True)
    first = Stage(config, shorten(config, section), 0, folder / "first")
    begun = time.perf_counter()
    if first.config.optim.solve is not None:
        loop.train_and_evaluate(first, preemption)
        return Cost(time.perf_counter() - begun, 0.0, 0)
    step = time_steps(first, preemption)
    both = time.perf_counter()
    second = Stage(config, first.config, 0, folder / "second")
    loop.train_and_evaluate(second, preemption)
    again = time.perf_counter() - both
    fixed = max(again - second.config.num_steps * step, 0.0)
    return Cost(fixed, step, _count_bytes(first), max(both - begun - again, 0.0))


def time_steps(stage: Stage, preemption: Preemption) -> float:
    """Returns the median seconds of a step, after those that compile and fill queues.

    A later step may compile, too, where its texts are of another length.
    """
    run, count = loop.Run(stage, preemption), stage.config.num_steps
    times = []
    try:
        run.restore()
        for step in range(1, count + 1):
            begun = time.perf_counter()
            run.advance(step)
            jax.block_until_ready(run.state.params)
            times.append(time.perf_counter() - begun)
        run.settle_step(count)
        run.finish()
    finally:
        run.close()
    return statistics.median(times[2:])


def shorten(config: Any, section: Any) -> Any:
    """Returns a stage of TIMED_STEPS steps from `init`, with new parts for missing ones."""
    start = "scratch" if section.init_from == "scratch" else "pretrained"
    new = [*section.model.fresh]
    if section.init_from.startswith("stage:"):
        new += {"reconstruct": ["decoder"], "distill": ["decoder"], "mlm": ["mlm"]}.get(
            section.objective.name, ["head"] if held_out.sees_labels(section) else []
        )
    if section.objective.name == "distill" and section.objective.masked.name == "mlm":
        new = ["mlm" if name == "decoder" else name for name in new]
    model = change_fields(section.model, fresh=tuple(dict.fromkeys(new)))
    teacher = "none" if section.teacher == "none" else "pretrained"
    solved = section.optim.solve is not None
    fields = dict(num_steps=1 if solved else TIMED_STEPS, init_from=start, model=model)
    fields |= dict(seeds=(0,), sweep=None, fisher=None, teacher=teacher, watch=None)
    return change_fields(section, **fields)


def _count_bytes(stage: Stage) -> int:
    """Returns the bytes that a step takes on a device, by XLA."""
    mesh = sharding.make_mesh(stage.experiment.mesh)
    described = shapes.describe(stage, mesh)
    lowered = steps.lower_train_step(
        described.state, described.batch, *described.program.of_step(mesh)
    )
    found = plans.count_bytes(lowered.compile())
    return sum(found.values()) - found["code"]


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
            f"and export, on {device_name()}: give at least "
            f"{(spent + least) / 60 + 0.5:.0f}m, fewer data, or method=none"
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


def device_name() -> str:
    """Returns the kind and number of the devices that were timed."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
