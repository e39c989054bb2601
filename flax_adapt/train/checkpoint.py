"""Checkpoints of a running stage: state, data position and what else is needed to go on.

Orbax, asynchronous; a step folder is complete or it is not there. `frozen` is stored by
reference: the stage's config says where it came from.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flax_adapt.base.errors import choose
from flax_adapt.train.state import TrainState

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


class Checkpoints:
    """The checkpoints in one folder: the last `keep_last` and the `keep_best` best."""

    def __init__(self, folder: Path, config: Any, metric: str, mode: str):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy(config, metric, mode),
            enable_async_checkpointing=True,
        )
        self._manager = _Manager(folder.absolute(), options=options)

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
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state.replace(frozen={})),
                data=ocp.args.JsonSave(copy.deepcopy(dict(data))),
                progress=ocp.args.JsonSave(dict(progress)),
            ),
            metrics=None if metrics is None else dict(metrics),
        )

    def restore(self, state: TrainState) -> tuple[TrainState, Any, Any]:
        """Returns the last saved (state, data position, progress).

        `state` gives structure, shardings and `frozen`; any number of devices will do.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state.replace(frozen={}))
        restored = self._manager.restore(
            self.latest_step(),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target),
                data=ocp.args.JsonRestore(),
                progress=ocp.args.JsonRestore(),
            ),
        )
        saved = restored["state"].replace(frozen=state.frozen)
        return saved, restored["data"], restored["progress"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()
