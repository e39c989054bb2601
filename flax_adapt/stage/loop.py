"""The training loop of one stage, from its config to its export."""

import contextlib
import functools
import logging
import math
import time
from typing import Any

import jax

from flax_adapt import data
from flax_adapt.base import logs, rules
from flax_adapt.base.errors import Preempted, UserError
from flax_adapt.base.metrics import Meter
from flax_adapt.base.types import Metrics
from flax_adapt.stage import data as inputs
from flax_adapt.stage import same_data, training
from flax_adapt.stage import stage as stages
from flax_adapt.stage.evaluating import Evaluation, describe_break
from flax_adapt.stage.result import (
    RESULT,
    begin_progress,
    describe_result,
    is_done,
    open_writer,
    read_result,
)
from flax_adapt.stage.stage import Stage
from flax_adapt.stage.watching import keeping
from flax_adapt.stage.watching import section as watched
from flax_adapt.stage.watching.measurements import Instruments
from flax_adapt.train import optim, sharding
from flax_adapt.train import step as steps
from flax_adapt.train.gather import share_files
from flax_adapt.train.preemption import Preemption

log = logging.getLogger(__name__)


def train_and_evaluate(
    stage: Stage, preemption: Preemption, instruments: Instruments | None = None
) -> dict[str, Any]:
    """Trains one stage and returns its result; of a finished stage only the stored result.

    instruments: of a stage that watches a metric.

    Training resumes from the stage's own checkpoint, else it starts from `init_from`. Raises
    UserError where config, data or weights do not fit, Preempted after SIGTERM (a complete
    checkpoint is on disk) and NonFiniteError (the last good checkpoint is on disk).
    """
    if is_done(stage):
        return read_result(stage)
    run = Run(stage, preemption, instruments)
    try:
        step = run.restore()
        run.settle_step(step)
        while not run.is_last(step):
            step += 1
            run.advance(step)
            run.settle_step(step)
        return run.finish()
    finally:
        run.close()


class Run:
    """A running stage: all objects that are built from its config, and its progress."""

    def __init__(
        self,
        stage: Stage,
        preemption: Preemption,
        instruments: Instruments | None = None,
    ):
        stage = watched.hold_out(stage)
        config = stage.config
        self.stage, self.config, self.preemption = stage, config, preemption
        self.clock, self.meter = time.perf_counter(), Meter()
        self.pending: tuple[int, Metrics] | None = None
        self.progress = begin_progress(stage)
        self.mesh = sharding.make_mesh(stage.experiment.mesh)
        parts = config.optim.accum_steps
        sharding.check_batch_size(config.batch_size, parts, self.mesh)
        self.examples = inputs.open_training(stage)
        self.batches = data.make_batches(
            self.examples,
            config.batch_size,
            stage.seed,
            *sharding.share_of_process(self.mesh),
        )
        classes = inputs.num_classes(stage, self.examples)
        self.model = stages.build_model(stage, classes)
        inputs.check_text(stage, self.model, config.data, self.examples)
        self.schedule = optim.schedule(config.optim, config.num_steps)
        start = (stage, self.model, self.examples, self.mesh)
        self.begin = functools.partial(training.begin_training, *start)
        self.state, self.train_step, self.report = self.begin()
        self.names = rules.names(self.state.params)
        self.evaluation: Evaluation | None = None
        if config.eval is not None:
            self.evaluation = Evaluation(stage, self.model, self.examples, self.mesh)
        self.bar: Any = None
        self.writer: logs.MetricWriter | None = None
        self.warned = False
        self._open_folder(instruments)

    def _open_folder(self, instruments: Instruments | None) -> None:
        """Opens the checkpoints; nothing is written before the checks of `__init__` passed."""
        from flax_adapt.train import checkpoint  # imports Orbax

        stage, config = self.stage, self.config
        metric, mode, self.eval_data = "loss", "min", ""
        if config.eval is not None:
            metric, mode = config.eval.metric, config.eval.mode
            self.eval_data = f"{config.eval.data.source} {config.eval.data.split}"
        self.metric, self.mode = metric, mode
        test = None if self.evaluation is None else self.evaluation.examples
        same_data.check(stage, self.examples, test)
        self.checkpoints = checkpoint.Checkpoints(
            stage.folder / "checkpoints", stage.experiment.checkpoint, metric, mode
        )
        opened = (stage, self.model, self.examples, self.mesh)
        self.keeper = keeping.open_keeper(*opened, instruments, self.checkpoints)
        if jax.process_index() == 0 and self.report is not None:
            logs.write_json(stage.folder / "import_report.json", self.report.to_json())

    def restore(self) -> int:
        """Restores the last checkpoint, if there is one, and returns its step, else 0.

        Raises UserError for a checkpoint beyond `num_steps`, or if none can be read.
        """
        if self.checkpoints.latest_step() is not None:
            self.state, position, stored = self.checkpoints.restore(self.state)
            self.progress |= stored
            self.batches.set_state(position)
            self.keeper.restore(self.progress["watch"])
            self.meter = Meter.from_plain(self.progress["meter"])
            log.info("%s: resuming from step %d", self.stage.label, self.state.step)
        elif self.report is not None and self.stage.is_first:
            log.info("%s: %s", self.stage.label, self.report.summary())
        step = int(self.state.step)
        if step > self.config.num_steps:
            raise UserError(
                f"stage {self.stage.label}: there is a checkpoint of step {step}, beyond "
                f"num_steps={self.config.num_steps}; raise it or delete "
                f"{self.stage.folder / 'checkpoints'}"
            )
        self.writer = open_writer(self.stage, step)
        self.reported = (step, time.perf_counter())
        self.bar = logs.progress(
            self.config.num_steps,
            initial=step,
            description=self.stage.label,
            enabled=jax.process_index() == 0,
        )
        return step

    def advance(self, step: int) -> None:
        """Takes one optimizer step; its metrics are read while the next step runs."""
        batch = sharding.put_batch(next(self.batches), self.mesh)
        self.state, metrics = self.train_step(self.state, batch)
        self._collect()
        self.pending = (step, metrics)

    def settle_step(self, step: int) -> None:
        """Measures, reports, evaluates, saves and stops if it is due after `step`.

        Raises Preempted if a stop was requested, after saving.
        """
        stops = self.preemption.requested()
        if not stops and self.keeper.is_due(step, self.is_last(step)):
            self._collect()
            self._write(step, self.keeper.measure(step, self.state))
        if step and self._due(step, self.stage.experiment.log_every_steps):
            self._report(step)
        if step and self._eval_due(step) and not stops:
            self._evaluate(step)
            stops = self.preemption.requested()
        every = self.stage.experiment.checkpoint.every_steps
        if step and (stops or self.keeper.is_best(step) or self._due(step, every)):
            self._save(step)
        if stops:
            raise Preempted(f"stage {self.stage.label} stopped at step {step}")

    def is_last(self, step: int) -> bool:
        """Returns whether training ends after `step`."""
        return step == self.config.num_steps or self.keeper.is_over

    def _due(self, step: int, every_steps: int) -> bool:
        return self.is_last(step) or (every_steps > 0 and step % every_steps == 0)

    def _eval_due(self, step: int) -> bool:
        config, done = self.config.eval, self.progress["evaluated"] == step
        return config is not None and not done and self._due(step, config.every_steps)

    def _collect(self) -> None:
        """Adds the metrics of the last step to the meter.

        Raises NonFiniteError if its loss, gradients or parameters are not finite.
        """
        if self.pending is None:
            return
        step, metrics = self.pending[0], jax.device_get(self.pending[1])
        self.pending = None
        bad_leaf = int(metrics.pop(steps.BAD_LEAF).total)
        if bad_leaf >= 0 or not math.isfinite(metrics["loss"].value()):
            self._give_up(step, bad_leaf)
        self.meter.add(metrics)

    def _give_up(self, step: int, bad_leaf: int) -> None:
        place = self.names[bad_leaf] if bad_leaf >= 0 else "none: the loss alone"
        if self.checkpoints.latest_step() == step - 1:
            self.checkpoints.drop(step - 1)  # this step began with it
        good = self.checkpoints.latest_step()
        raise describe_break(self.stage, step, place, good)

    def _report(self, step: int) -> None:
        self._collect()
        values = self.meter.values()
        if not values:  # resumed at this step, which was reported before
            return
        (last, then), self.reported = self.reported, (step, time.perf_counter())
        speed = (step - last) * self.config.batch_size / (self.reported[1] - then)
        self.progress["train"] = values
        self.warned = self.warned or inputs.warn_of_overflow(self.stage, values)
        rates = {"lr": float(self.schedule(step - 1)), "examples_per_second": speed}
        counts = {"bad_files": len(self.examples.bad_files)}
        self._write(step, {**values, **rates, **counts})
        logs.show(self.bar, step, loss=values["loss"], examples_per_second=speed)
        self.meter = Meter()

    def _evaluate(self, step: int) -> None:
        """Evaluates every example of the evaluation data once; abandoned on SIGTERM."""
        assert self.evaluation is not None  # else none is due
        values = self.evaluation.run(self.state, step, self.preemption)
        if values is None:
            return
        self.progress |= {"eval": values, "evaluated": step}
        self._write(step, {f"eval_{name}": v for name, v in values.items()})

    def _save(self, step: int) -> None:
        self._collect()
        now = time.perf_counter()
        self.progress["seconds"] += now - self.clock
        self.clock = now
        evaluated = self.progress["evaluated"] == step
        self.progress["meter"] = self.meter.to_plain()
        self.progress["watch"] = self.keeper.to_plain()
        self.checkpoints.save(
            self.state,
            self.batches.get_state(),
            self.progress,
            self.progress["eval"] if evaluated else None,
        )

    def finish(self) -> dict[str, Any]:
        """Exports the model and writes the result, which marks the stage as done.

        Raises Preempted where SIGTERM came before a state that is kept was evaluated.
        """
        watch = self._settle_watched()
        training.export(self.stage, self.model, self.state, self.examples, self.mesh)
        result = {
            **describe_result(self.stage, self.progress, self.metric, self.mode),
            "seconds": self.progress["seconds"] + time.perf_counter() - self.clock,
            "eval_data": self.eval_data,
            "bad_files": len(self.examples.bad_files),
            **watch,
        }
        if jax.process_index() == 0:
            logs.write_json(self.stage.folder / RESULT, result)
        share_files(f"result {self.stage.label}")
        return result

    def _settle_watched(self) -> dict[str, Any]:
        """Goes to the state that a watched stage keeps, and evaluates it."""
        last = self.state
        self.state, watch = self.keeper.settle(last, self.begin)
        if self.state is not last and self.evaluation is not None:
            step = int(self.state.step)
            values = self.evaluation.run(self.state, step, self.preemption)
            if values is None:
                raise Preempted(f"stage {self.stage.label} stopped at step {last.step}")
            self.progress["eval"] = values
        return watch

    def _write(self, step: int, values: dict[str, float]) -> None:
        assert self.writer is not None  # `restore` opens it, before the first step
        self.writer.write(step, values)

    def close(self) -> None:
        """Closes checkpoints, writer and progress bar, even if one of them raises."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.checkpoints.close)
            for opened in (self.writer, self.bar):
                if opened is not None:
                    stack.callback(opened.close)
