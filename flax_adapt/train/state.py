"""The state of training: parameters, optimizer state, and arrays that get no gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from flax_adapt.base.types import AVERAGE, NOTHING_CARRIED, Array, Carry, Params
from flax_adapt.models import batch_stats
from flax_adapt.train import sharding

_CARRY = 0x7FFFFFFE  # folded into the key of a carry; no step and no evaluation has it


class TrainState(struct.PyTreeNode):
    """The state of training between two steps.

    `frozen` (teacher ...) is never donated and not stored in checkpoints. `extra` has no
    gradient: the seed of all randomness, and the arrays that every step updates, such as
    averages, queues and running statistics (`types.Carry`).
    """

    step: Array  # int32 []: optimizer steps done
    params: Params
    opt_state: Any
    frozen: Params
    extra: dict[str, Any]

    @property
    def loss_inputs(self) -> Params:
        """The argument `frozen` of a loss: `frozen`, and averages, queues and statistics."""
        carried = {name: leaf for name, leaf in self.extra.items() if name != "seed"}
        return {**self.frozen, **carried}

    @property
    def evaluated(self) -> Params:
        """The parameters to evaluate and export: their moving average, if there is one."""
        return self.extra.get(AVERAGE, self.params)

    @property
    def statistics(self) -> Params:
        """The running statistics of batch norm, {} for a model without it."""
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
    """Returns the state at step 0, every leaf placed on `mesh` by the sharding table.

    params: initial parameters. seed: of all randomness. frozen: arrays that the loss reads
    without a gradient, such as a teacher. carry: arrays that every step updates without a
    gradient; `make_train_step` must get the same one.
    """
    extra = sharding.put(_init_extra(params, seed, carry), mesh)
    params = sharding.put(params, mesh)
    shapes = jax.eval_shape(tx.init, params)
    shardings = sharding.tree_shardings(shapes, mesh)
    return TrainState(
        step=sharding.put({"step": jnp.int32(0)}, mesh)["step"],
        params=params,
        opt_state=jax.jit(tx.init, out_shardings=shardings)(params),
        frozen=sharding.put(frozen or {}, mesh),
        extra=extra,
    )


def describe(
    params: Params,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    frozen: Params,
    carry: Carry = NOTHING_CARRIED,
) -> TrainState:
    """Returns the state that `create` makes, as shapes with shardings; nothing is computed.

    params, frozen: shapes. The devices of `mesh` need not be there.
    """

    def init(params: Params, frozen: Params) -> TrainState:
        extra = _init_extra(params, seed, carry)
        return TrainState(jnp.int32(0), params, tx.init(params), frozen, extra)

    return sharding.describe(jax.eval_shape(init, params, frozen), mesh)


def _init_extra(params: Params, seed: int, carry: Carry) -> dict[str, Any]:
    """Returns the initial `TrainState.extra`."""
    carried = carry.init(params, jax.random.fold_in(jax.random.key(seed), _CARRY))
    return {"seed": jnp.uint32(seed), **carried}
