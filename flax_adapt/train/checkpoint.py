"""Checkpoints of a running stage: state, data position and what else is needed to go on.

Orbax, asynchronous; a step folder is complete or it is not there. `frozen` is stored by
reference: the stage's config says where it came from.

A power cut or a bad disk can damage a complete one. It is then moved beside the others,
to `damaged_checkpoints`, and the newest that can be read is taken.
"""

import contextlib
import copy
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from flax_adapt.base import errors
from flax_adapt.base.errors import UserError, choose
from flax_adapt.train.state import TrainState

log = logging.getLogger(__name__)
_REVERSE = {"max": False, "min": True}  # BestN keeps the end of the sorted list


def _policy(config: Any, metric: str, mode: str) -> Any:
    policies: list[Any] = [checkpoint_managers.LatestN(config.keep_last)]
    if config.keep_best > 0:
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[metric],
            reverse=choose("eval.mode", mode, _REVERSE),
            n=config.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        policies.append(best)
    return checkpoint_managers.AnyPreservationPolicy(policies)


class _Manager(ocp.CheckpointManager):
    """Leaves JAX's preemption service to `preemption`, which counts its own polls.

    Orbax asks it with step numbers, and from a thread: the agreement on where to stop
    would then rest on a stale number, and SIGTERM could go unheard.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


def _is_said_once(record: logging.LogRecord) -> bool:
    from_orbax = "orbax" in record.pathname and record.levelno >= logging.ERROR
    return record.exc_info is None and not from_orbax


def _quiet_orbax() -> None:
    """What goes wrong in its threads is raised here; they also print it, many times."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_said_once)
    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable(sys.unraisablehook)


class _Unraisable:
    """Leaves out reads and writes that end after one failed, and find nobody waiting."""

    def __init__(self, before: Callable[[Any], object]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        is_orbax = code is not None and "orbax" in code.co_filename
        if not is_orbax and str(unraisable.exc_value) != "Event loop is closed":
            self._before(unraisable)


class Checkpoints:
    """The checkpoints in one folder: the last `keep_last` and the `keep_best` best.

    Every method raises UserError where the disk is full: what is complete stays.
    """

    def __init__(self, folder: Path, config: Any, metric: str, mode: str):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy(config, metric, mode),
            enable_async_checkpointing=True,
        )
        _quiet_orbax()
        self._folder = folder.absolute()
        self._manager = _Manager(self._folder, options=options)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def drop(self, step: int) -> None:
        """Deletes a checkpoint that turned out bad, unless it is the only one."""
        self._manager.wait_until_finished()
        if len(self._manager.all_steps()) > 1:
            self._manager.delete(step)

    def save(
        self,
        state: TrainState,
        data: Mapping[str, Any],
        progress: Mapping[str, Any],
        metrics: Mapping[str, float] | None,
    ) -> None:
        """Starts saving; returns once the state may be donated. Once a step."""
        step = int(state.step)
        if step == self.latest_step():
            return
        with self._room():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state.replace(frozen={})),
                    data=ocp.args.JsonSave(copy.deepcopy(dict(data))),
                    progress=ocp.args.JsonSave(dict(progress)),
                ),
                metrics=None if metrics is None else dict(metrics),
            )

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            problem = errors.full_disk(error)
            if problem is None:
                raise
            good = max(self._steps_on_disk(), default="none")
            raise UserError(
                f"a checkpoint could not be written to {self._folder} ({problem}); last "
                f"good checkpoint: step {good}; make room, then run the same command again"
            ) from None

    def _steps_on_disk(self) -> list[int]:
        names = [path.name for path in self._folder.glob("*")]
        return [int(name) for name in names if name.isdigit()]

    def restore(self, state: TrainState) -> tuple[TrainState, Any, Any]:
        """Returns (state, data position, progress) of the newest that can be read.

        `state` gives structure, shardings and `frozen`; any number of devices will do.
        What is newer and cannot be read is moved to `damaged_checkpoints`, and said.
        Raises UserError if none can be read.
        """
        reasons: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._restore(step, state)
            except Exception as error:
                reasons[step] = " ".join(f"{type(error).__name__}: {error}".split())
                continue
            if reasons:
                self._set_aside(reasons, step)
            return found
        told = "; ".join(f"step {step}: {why[:200]}" for step, why in reasons.items())
        raise UserError(
            f"no checkpoint in {self._folder} can be read for this config ({told}); put a "
            f"good one back, or delete {self._folder.parent} to train the stage again"
        )

    def _restore(self, step: int, state: TrainState) -> tuple[TrainState, Any, Any]:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state.replace(frozen={}))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target),
                data=ocp.args.JsonRestore(),
                progress=ocp.args.JsonRestore(),
            ),
        )
        data, progress = restored["data"], restored["progress"]
        if not isinstance(data, dict) or not isinstance(progress, dict):
            raise ValueError("the position in the data or the progress is missing")
        saved = restored["state"].replace(frozen=state.frozen)
        if int(saved.step) != step:
            raise ValueError(f"it holds the state of step {saved.step}")
        return saved, data, progress

    def _set_aside(self, reasons: Mapping[int, str], good: int) -> None:
        """Moves damaged steps away: they are in the way of new ones of the same number."""
        for step, reason in reasons.items():
            target = self._folder.parent / "damaged_checkpoints" / str(step)
            log.warning(
                "the checkpoint of step %d in %s is damaged (%.200s): moved to %s, going on "
                "from step %d",
                *(step, self._folder, reason, target, good),
            )
            if jax.process_index() == 0:
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits until everything is on disk."""
        with self._room():
            self._manager.close()
