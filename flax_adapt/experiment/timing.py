"""The cost of a stage, by two short runs of it on this machine."""

import contextlib
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flax_adapt.data import subset
from flax_adapt.experiment import device_memory, held_out
from flax_adapt.experiment.measuring import watched
from flax_adapt.objectives import teacher
from flax_adapt.plan import plans
from flax_adapt.stage import loop
from flax_adapt.stage import stage as stages
from flax_adapt.stage.draws import change_fields
from flax_adapt.stage.stage import Stage
from flax_adapt.train import step as steps
from flax_adapt.train.preemption import Preemption

TIMED_STEPS = 6
# Share of a step that reads the teacher's table which the pass of the teacher over the batch
# takes, at most: the student's own pass over the same inputs has a backward pass of twice
# its work, and the masked input comes on top.
TEACHER_PASS = 1 / 3


class Cost(NamedTuple):
    """Seconds of a run of a stage beside its steps, seconds of a step, bytes of a device.

    compile: seconds by which the first run takes longer than another with the same program.
    tabulates: the step reads a table of the teacher's states, whose size is that of the data:
    its program serves other stages with the same data, but is not the one that was timed.
    """

    fixed: float
    step: float
    bytes: int
    compile: float = 0.0
    tabulates: bool = False


@contextlib.contextmanager
def compile_cold() -> Iterator[None]:
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


def time_stage(config: Any, section: Any, folder: Path, preemption: Preemption) -> Cost:
    """Returns the cost of a stage, by two short runs of it that start from `init`.

    The second one has the programs of the first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    short = Stage(config, shorten(config, section), 0, folder / "first")
    first, batches = _take_few(short)
    begun = time.perf_counter()
    if first.config.optim.solve is not None:
        watched.train(first, preemption)
        step, size = 0.0, 0
    else:
        step, size = measure_steps(first, preemption)
    both = time.perf_counter()
    second = Stage(config, first.config, 0, folder / "second")
    watched.train(second, preemption)
    again = time.perf_counter() - both
    fixed = max(again - second.config.num_steps * step, 0.0)
    fixed += batches * step * TEACHER_PASS
    return Cost(fixed, step, size, max(both - begun - again, 0.0), batches > 0)


def _take_few(stage: Stage) -> tuple[Stage, int]:
    """Returns a stage whose examples come twice, so that it reads the teacher's table.

    And the number of batches of all examples, for which the table is computed in the end; 0
    and the stage as it is where the teacher runs in every step, see `teacher.plan_table`.
    """
    config, few = stage.config, stage.config.batch_size * (TIMED_STEPS // 2)
    if config.teacher == "none" or config.objective.name != "distill":
        return stage, 0
    count = len(subset.open_chosen(config.data))
    model = stages.build_model(stage, 0)
    if teacher.plan_table(model, config.objective, config.data, count) is None:
        return stage, 0
    base = config.data.subset
    first = change_fields(base, part="first", base=base, count=few)
    data = change_fields(config.data, subset=first)
    timed = stage._replace(config=change_fields(config, data=data))
    return timed, math.ceil(count / config.batch_size)


def time_steps(stage: Stage, preemption: Preemption) -> float:
    """Returns the median seconds of a step, see `measure_steps`."""
    return measure_steps(stage, preemption)[0]


@device_memory.explain
def measure_steps(stage: Stage, preemption: Preemption) -> tuple[float, int]:
    """Returns the median seconds of a step, and the bytes that it takes on a device, by XLA.

    The steps that compile and fill queues do not count. A later step may compile, too, where
    its texts are of another length; the bytes are those of the largest batch.
    """
    run, count = loop.Run(stage, preemption), stage.config.num_steps
    times, measure_size = [], _watch_batches(run)
    try:
        run.restore()
        for step in range(1, count + 1):
            begun = time.perf_counter()
            run.advance(step)
            jax.block_until_ready(run.state.params)
            times.append(time.perf_counter() - begun)
        size = measure_size()
        run.settle_step(count)
        run.finish()
    finally:
        run.close()
    return statistics.median(times[2:]), size


def _watch_batches(run: loop.Run) -> Callable[[], int]:
    """Returns what measures the program of the largest batch that a run has trained on.

    It is compiled already: the step lowers and compiles it as it did when it was called.
    """
    train_step, shapes = run.train_step, list[Any]()

    def remember(state: Any, batch: Any) -> Any:
        shapes.append(jax.tree.map(_describe_leaf, batch))
        return train_step(state, batch)

    def measure() -> int:
        if not shapes:
            return 0
        assert isinstance(train_step, steps.CompiledStep)  # no head that is solved for
        largest = max(shapes, key=_count_elements)
        found = plans.count_bytes(train_step.lower(run.state, largest).compile())
        return sum(found.values()) - found["code"]

    run.train_step = remember
    return measure


def _describe_leaf(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _count_elements(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


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
    of = "none" if section.teacher == "none" else "pretrained"
    solved = section.optim.solve is not None
    fields = dict(num_steps=1 if solved else TIMED_STEPS, init_from=start, model=model)
    fields |= dict(seeds=(0,), sweep=None, fisher=None, teacher=of, watch=None)
    return change_fields(section, **fields)
