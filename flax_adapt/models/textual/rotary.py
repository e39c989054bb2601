"""Rotary positions (Su et al. 2021), as ModernBERT has them."""

import functools

import jax.numpy as jnp
import numpy as np

from flax_adapt.base.types import Array


@functools.cache
def frequencies(theta: float, head_dim: int) -> np.ndarray:
    """Returns float32 [head_dim / 2]: angles of one position, theta^(-2 i / head_dim)."""
    power = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (1 / np.float32(theta) ** power).astype(np.float32)


def turns(positions_BL: Array, frequencies_J: Array) -> Array:
    """Returns turn_BLK, float32, of `visual.rotary.turn`: J cosines and J sines a token."""
    position_BL1 = positions_BL[..., None].astype(jnp.float32)
    angle_BLJ = position_BL1 * frequencies_J[None, None]
    return jnp.concatenate([jnp.cos(angle_BLJ), jnp.sin(angle_BLJ)], axis=-1)
