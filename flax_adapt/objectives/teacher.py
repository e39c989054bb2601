"""States of a teacher that sees the same inputs in every epoch: computed once per example.

Where the full input of self-distillation is not augmented, the teacher's states of an
example never change. They are computed before the first step and become a table that the
loss reads by `batch["index"]`. That saves the teacher's pass of every epoch but one, and
its parameters on the device.

The states of an example are computed with its neighbours in the source, never with the
examples of a training batch. So they do not depend on the step at which a run was
interrupted, and a resumed run has the same numbers to the bit. They differ from those that
a step would compute by rounding alone.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_adapt.base.types import Array, Batch, Params
from flax_adapt.models.residual import Select
from flax_adapt.objectives import states
from flax_adapt.train import sharding

# The entry of `frozen`: {"00": states float32 [n, U, D] of the first compared layer, ...}.
TABLE = "teacher_states"
# The matches that read nothing but hidden states of the teacher.
MATCHES = ("states", "features")
# Fields of a section `augment` whose value says that an operation is off.
OFF = {
    "flip": False,
    "min_crop_area": 1,
    "jitter_probability": 0,
    "grey_probability": 0,
    "blur_probability": 0,
    "solarize_probability": 0,
    "randaugment_operations": 0,
    "erase_probability": 0,
}


class TablePlan(NamedTuple):
    """Which states a table holds: of which layers, of which tokens (None: of all)."""

    layers: tuple[int, ...]
    select: Select | None

    def compute(
        self,
        model: nn.Module,
        params: Params,
        prepare: Callable[[Batch], Any],
        batches: Iterable[Batch],
        num_examples: int,
        mesh: Mesh,
    ) -> dict[str, np.ndarray]:
        """Returns the table of all examples, the same on every process.

        params: of the teacher. prepare: batch -> inputs of the model. batches: of this
        process, with all examples in order, and rows of index -1 after them.
        """
        params = sharding.put(params, mesh)

        def run(params: Params, batch: Batch) -> list[Array]:
            with sharding.placing(mesh):
                inputs, how = prepare(batch), (self.layers, self.select)
                return states.encode_selected(model, params, inputs, *how)

        everywhere = NamedSharding(mesh, PartitionSpec())
        compiled = jax.jit(run, out_shardings=everywhere)
        table: dict[str, np.ndarray] = {}
        first = 0
        for batch in batches:
            found = jax.device_get(compiled(params, sharding.put_batch(batch, mesh)))
            for number, x_BUD in enumerate(found):
                shape = (num_examples, *x_BUD.shape[1:])
                rows = table.setdefault(f"{number:02d}", np.empty(shape, x_BUD.dtype))
                rows[first : first + len(x_BUD)] = x_BUD[: num_examples - first]
            first += len(found[0])
        return table


def plan_table(
    model: nn.Module, config_objective: Any, config_data: Any, num_examples: int
) -> TablePlan | None:
    """Returns how the table of a stage is made; None where the teacher runs in every step.

    It does where predictions are compared, inputs are augmented, rows of text have several
    lengths and all their tokens are compared, or the table is larger than
    `teacher_cache_bytes`.
    """
    one_document = states.holds_one_document(config_data)
    select = states.select_compared(config_objective.state, model, one_document)
    is_text = config_data.modality == "text"
    if is_text and select is None and len(config_data.buckets):
        return None
    length = (
        config_data.seq_len
        if is_text
        else model.config.num_prefix + model.config.num_patches
    )
    last_block = model.config.last_block
    width = max(model.config.width, last_block.width if last_block else 0)
    layers = tuple(config_objective.layers)
    size = 4 * num_examples * (1 if select else length) * width * len(layers)
    fits = size <= config_objective.teacher_cache_bytes
    compares_states = config_objective.match in MATCHES
    augments = _is_augmented(config_objective, config_data)
    return (
        TablePlan(layers, select) if compares_states and fits and not augments else None
    )


def _is_augmented(config_objective: Any, config_data: Any) -> bool:
    """Returns whether an example is another one in another epoch; texts never are."""
    if config_data.modality != "image":
        return False
    if config_objective.masked.mixing.operator != "none":
        return True
    sections = [*config_data.views, config_data.augment]
    return any(
        section[name] != off for section in sections for name, off in OFF.items()
    )


def look_up(table: Params, index_B: Array) -> list[Array]:
    """Returns the teacher's states [B, U, D] of each compared layer, by rows of the source."""
    return [jnp.take(table[name], index_B, axis=0) for name in sorted(table)]
