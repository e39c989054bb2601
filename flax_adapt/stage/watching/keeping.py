"""The best state of a stage that watches a metric: its checkpoint, and the stage's result."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flax import linen as nn
from jax.sharding import Mesh

from flax_adapt import data
from flax_adapt.stage.stage import Stage
from flax_adapt.stage.training import TrainingStart
from flax_adapt.stage.watching.measurements import Instruments, Watch
from flax_adapt.train.state import TrainState

if TYPE_CHECKING:  # it imports Orbax
    from flax_adapt.train.checkpoint import Checkpoints


class Keeper:
    """Measures the watched metric of a running stage, and keeps the best state on disk.

    watch: None for a stage that watches nothing, where all of it does nothing.
    """

    def __init__(self, watch: Watch | None, checkpoints: "Checkpoints"):
        self._watch, self._checkpoints = watch, checkpoints

    @property
    def is_over(self) -> bool:
        """Whether training stops, as patience has run out."""
        return self._watch is not None and self._watch.is_over

    def restore(self, stored: dict[str, Any]) -> None:
        """Goes on from what a checkpoint has of `to_plain`.

        Where the best state's checkpoint is missing (a later one was damaged, and the
        run goes back), the next measured state is the best.
        """
        if self._watch is None:
            return
        self._watch.read_plain(stored)
        best = self._watch.best_step
        if best is not None and self._checkpoints.has(best):
            self._checkpoints.hold(best)
        elif best is not None:
            self._watch.forget_best()

    def to_plain(self) -> dict[str, Any]:
        """Returns the measurements as JSON values."""
        return {} if self._watch is None else self._watch.to_plain()

    def is_due(self, step: int, is_last: bool) -> bool:
        """Returns whether the state after `step` is to be measured, and is not yet."""
        return self._watch is not None and self._watch.is_due(step, is_last)

    def measure(self, step: int, state: TrainState) -> dict[str, float]:
        """Measures the state after `step`, see `Watch.measure`."""
        assert self._watch is not None  # else none is due
        values = self._watch.measure(step, state)
        if step and self._watch.best_step == step:
            self._checkpoints.hold(step)
        return values

    def is_best(self, step: int) -> bool:
        """Returns whether the state after `step` is the best one so far."""
        return self._watch is not None and self._watch.best_step == step

    def settle(
        self, state: TrainState, restart: Callable[[], TrainingStart]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state that is the stage's result, and what result.json says of it.

        state: after the last step. restart: begins the stage again. The second is
        {"watch": `Watch.describe`}, or {} where nothing is watched.
        """
        if self._watch is None:
            return state, {}
        found = self._watch.describe()
        kept = found["kept_step"]
        if kept == 0:
            state = restart().state
        elif kept != int(state.step):
            state = self._checkpoints.restore_step(kept, state)
        return state, {"watch": found}


def open_keeper(
    stage: Stage,
    model: nn.Module,
    examples: data.Examples,
    mesh: Mesh,
    instruments: Instruments | None,
    checkpoints: "Checkpoints",
) -> Keeper:
    """Returns the keeper of a stage, which has measured nothing yet."""
    section = stage.config.watch
    if section is None:
        return Keeper(None, checkpoints)
    if instruments is None:
        raise ValueError(
            f"stage {stage.label} watches {section.metric} without a meter"
        )
    meter = instruments.open(stage, model, examples, mesh)
    return Keeper(Watch(section, instruments, meter), checkpoints)
