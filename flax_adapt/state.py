"""What a training step carries from one batch to the next."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from flax_adapt import sharding
from flax_adapt.types import Array, Params


class TrainState(struct.PyTreeNode):
    """`frozen` (teacher ...) is never donated, and stored by reference, not by value.

    `extra` is what is carried but not trained: the seed of all randomness.
    """

    step: Array  # int32 []: optimizer steps done
    params: Params
    opt_state: Any
    frozen: Params
    extra: dict[str, Array]


def create(
    params: Params,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    frozen: Params | None = None,
) -> TrainState:
    """Returns the state at step 0, every leaf placed on `mesh` by the sharding table."""
    params = sharding.put(params, mesh)
    shapes = jax.eval_shape(tx.init, params)
    shardings = sharding.tree_shardings(shapes, mesh)
    carried = {"step": jnp.int32(0), "seed": jnp.uint32(seed)}
    carried = sharding.put(carried, mesh)
    return TrainState(
        step=carried["step"],
        params=params,
        opt_state=jax.jit(tx.init, out_shardings=shardings)(params),
        frozen=sharding.put(frozen or {}, mesh),
        extra={"seed": carried["seed"]},
    )
