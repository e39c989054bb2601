"""The state of training: parameters, optimizer state, and what neither trains."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from flax_adapt.base.types import AVERAGE, NOTHING_CARRIED, Array, Carry, Params
from flax_adapt.models import batch_stats
from flax_adapt.train import sharding

_CARRY = 0x7FFFFFFE  # its key never meets those of steps and of evaluation


class TrainState(struct.PyTreeNode):
    """`frozen` (teacher ...) is never donated, and stored by reference, not by value.

    `extra` changes with every step but is not trained: the seed of all randomness, and
    averages, queues and statistics of the objective (`types.Carry`).
    """

    step: Array  # int32 []: optimizer steps done
    params: Params
    opt_state: Any
    frozen: Params
    extra: dict[str, Any]

    @property
    def loss_inputs(self) -> Params:
        """What a loss reads and does not train: `frozen`, and averages, queues, statistics."""
        carried = {name: leaf for name, leaf in self.extra.items() if name != "seed"}
        return {**self.frozen, **carried}

    @property
    def evaluated(self) -> Params:
        """The parameters that are measured and exported: their average, if there is one."""
        return self.extra.get(AVERAGE, self.params)

    @property
    def statistics(self) -> Params:
        """Running statistics of batch norm, {} of a model without it."""
        return batch_stats.split(self.extra)[1]


def create(
    params: Params,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    frozen: Params | None = None,
    carry: Carry = NOTHING_CARRIED,
) -> TrainState:
    """Returns the state at step 0, every leaf placed on `mesh` by the sharding table."""
    carried = carry.init(params, jax.random.fold_in(jax.random.key(seed), _CARRY))
    params = sharding.put(params, mesh)
    shapes = jax.eval_shape(tx.init, params)
    shardings = sharding.tree_shardings(shapes, mesh)
    extra = sharding.put({"seed": jnp.uint32(seed), **carried}, mesh)
    return TrainState(
        step=sharding.put({"step": jnp.int32(0)}, mesh)["step"],
        params=params,
        opt_state=jax.jit(tx.init, out_shardings=shardings)(params),
        frozen=sharding.put(frozen or {}, mesh),
        extra=extra,
    )
