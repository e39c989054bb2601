"""Checkpoints of a running stage: its state, its position in the data and its progress.

Orbax writes them asynchronously; the folder of a step is complete or does not exist.
`frozen` is not stored: it is built again from the stage's config and from earlier stages.

A power cut or a bad disk can damage a complete checkpoint. It is then moved to the folder
`damaged_checkpoints`, and the newest checkpoint that can be read is restored.
"""

import contextlib
import copy
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from flax_adapt.base import errors
from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.remote import store, workdirs
from flax_adapt.train.gather import wait_for_all
from flax_adapt.train.state import TrainState

log = logging.getLogger(__name__)
_REVERSE = {"max": False, "min": True}  # BestN preserves the end of the sorted list


class _Held:
    """A policy that preserves the checkpoint of one step, whatever its age."""

    def __init__(self) -> None:
        self.step: int | None = None

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        del context
        return [one.step == self.step for one in checkpoints]


def _policy(config: Any, metric: str, mode: str, held: _Held) -> Any:
    policies: list[Any] = [checkpoint_managers.LatestN(config.keep_last), held]
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
    """A manager that does not poll JAX's preemption service, as `preemption` polls it.

    Orbax would poll it with step numbers, and from a thread. The processes would then agree
    on a stale number as the step to stop at, and could miss SIGTERM.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


def _is_said_once(record: logging.LogRecord) -> bool:
    from_orbax = "orbax" in record.pathname and record.levelno >= logging.ERROR
    return record.exc_info is None and not from_orbax


def _quiet_orbax() -> None:
    """Hides the repeated messages of Orbax's threads, whose errors are raised here anyway."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_said_once)
    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable(sys.unraisablehook)


class _Unraisable:
    """Hides errors of Orbax's coroutines that end after another one failed.

    before: the hook that gets all other errors.
    """

    def __init__(self, before: Callable[[Any], object]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        is_orbax = code is not None and "orbax" in code.co_filename
        if not is_orbax and str(unraisable.exc_value) != "Event loop is closed":
            self._before(unraisable)


class Checkpoints:
    """The checkpoints in one folder: the last `keep_last`, the `keep_best` best, a held one.

    config: section `checkpoint`. metric, mode: the best have its largest ("max") or
    smallest ("min") value. `save` and `close` raise UserError where the disk is full, or
    remote storage cannot be written; complete checkpoints stay. In a workdir on remote
    storage they are written there, or copied there when they are complete.
    """

    def __init__(self, folder: Path, config: Any, metric: str, mode: str):
        self._held = held = _Held()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy(config, metric, mode, held),
            enable_async_checkpointing=True,
        )
        _quiet_orbax()
        self._folder = workdirs.direct(folder.absolute())
        self._is_copied = workdirs.copies_checkpoints(folder.absolute())
        self._manager = _Manager(self._folder, options=options)

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def hold(self, step: int) -> None:
        """Keeps the checkpoint of `step`, and no longer that of the last call.

        The latter stays until a later checkpoint is complete.
        """
        self._held.step = step

    def has(self, step: int) -> bool:
        """Returns whether there is a complete checkpoint of `step`."""
        self._manager.wait_until_finished()
        return step in self._manager.all_steps()

    def restore_step(self, step: int, state: TrainState) -> TrainState:
        """Returns the state of one checkpoint; `state` is as that of `restore`.

        Raises UserError for a checkpoint that cannot be read.
        """
        self._manager.wait_until_finished()
        try:
            return self._restore(step, state)[0]
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"the checkpoint of step {step} in {self._folder}, the best one, cannot be "
                f"read ({reason[:200]}); put a good one back, or delete "
                f"{self._folder.parent} to train the stage again"
            ) from None

    def drop(self, step: int) -> None:
        """Deletes the checkpoint of `step`, unless it is the only one."""
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
        """Starts saving, unless there is a checkpoint of this step already.

        Returns as soon as the state may be donated. data: position in the data. progress:
        JSON values. metrics: of an evaluation of this step, None without one.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        workdirs.push()  # a checkpoint is never ahead of the files that belong to it
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
            if self._is_copied:
                self._manager.wait_until_finished()
                workdirs.push()

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        say = store.say_in_one_line if workdirs.is_open() else contextlib.nullcontext
        try:
            with say(self._folder):
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
        """Returns (state, data position, progress) of the newest readable checkpoint.

        `state` has the structure, the shardings and `frozen` of the result; the number of
        devices may differ from when it was saved. Newer checkpoints that cannot be read,
        twice, are moved to `damaged_checkpoints`, with a warning. Raises UserError if none
        can be read.
        """
        found, reasons = self._restore_newest(state)
        if found is not None and reasons:
            found = None  # its memory is needed for the next
            # It may have been the network: damaged is what fails again where another is read.
            found, reasons = self._restore_newest(state)
        if found is not None:
            if reasons:
                self._set_aside(reasons, int(found[0].step))
            return found
        shown = "; ".join(f"step {step}: {why[:200]}" for step, why in reasons.items())
        raise UserError(
            f"no checkpoint in {self._folder} can be read for this config ({shown}); put a "
            f"good one back, or delete {self._folder.parent} to train the stage again"
        )

    def _restore_newest(
        self, state: TrainState
    ) -> tuple[tuple[TrainState, Any, Any] | None, dict[int, str]]:
        """Returns the newest that can be read, None without any, and why others cannot."""
        reasons: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore(step, state), reasons
            except Exception as error:
                reasons[step] = " ".join(f"{type(error).__name__}: {error}".split())
        return None, reasons

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
        """Moves damaged checkpoints away, as new ones of the same step need their folders."""
        for step, reason in reasons.items():
            target = self._folder.parent / "damaged_checkpoints" / str(step)
            log.warning(
                "the checkpoint of step %d in %s is damaged (%.200s): moved to %s, going on "
                "from step %d",
                *(step, self._folder, reason, target, good),
            )
            if jax.process_index() == 0:
                epath.Path(target).rmtree(missing_ok=True)
                target.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(target)
        wait_for_all("damaged checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits until all checkpoints are on disk, and closes the manager."""
        with self._room():
            self._manager.close()
