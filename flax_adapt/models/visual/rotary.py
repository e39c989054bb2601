"""Rotary positions of patches, as DINOv3 has them (Simeoni et al. 2025, official code).

The centre of a patch has coordinates (y, x) in [-1, 1]. Of the K features of a head, pairs
(f, f + K / 2) are turned by angles: the first half of the pairs by y, the others by x, with
periods from 1 to `rotary_theta` in a geometric series. CLS and registers are not turned.
No parameter depends on the size of the image: another grid has other angles.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt.base import keys, placement
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array, Key
from flax_adapt.models.visual.traits import Traits

# Folded into the keys of examples: the keys of blocks are small numbers.
_AUGMENT = 0x520


def check_head(rotary_theta: float, head_dim: int) -> None:
    """Raises UserError for heads whose features are no pairs for two coordinates."""
    if rotary_theta and head_dim % 4:
        raise UserError(
            f"model.traits.rotary_theta={rotary_theta}: a head has {head_dim} features "
            "(width / heads), which must be a multiple of 4"
        )


def centres(side: int) -> np.ndarray:
    """Returns the coordinates (y, x) of the centres of patches, float32 [P, 2], in [-1, 1]."""
    line = 2 * (np.arange(0.5, side, dtype=np.float32) / side) - 1
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def turns(
    traits: Traits,
    side: int,
    head_dim: int,
    batch: int,
    key_B: Key | None,
    visible_BV: Array | None,
) -> Array | None:
    """Returns turn_BLK, float32: K / 2 cosines and K / 2 sines for every token.

    None for a model without rotary positions. side: of the grid of patches. visible_BV: see
    `vit.Encoder`. key_B: in training, where the traits may ask for coordinates that are
    shifted, jittered and rescaled, in another way for each example; the official code has
    one draw for a batch.
    """
    if not traits.rotary_theta:
        return None
    centre_1P2 = jnp.asarray(centres(side))[None]
    augments = (traits.rotary_shift, traits.rotary_jitter, traits.rotary_rescale)
    if key_B is not None and any(augments):
        centre_1P2 = centre_1P2 + jnp.zeros((batch, 1, 1), jnp.float32)
        centre_1P2 = _augment(traits, centre_1P2, keys.fold(key_B, _AUGMENT))
    rate_F = traits.rotary_theta ** -np.arange(0, 1, 4 / head_dim, dtype=np.float32)
    angle = 2 * math.pi * centre_1P2[..., None] * rate_F[None, None, None]
    angle = angle.reshape(*angle.shape[:2], -1)
    turn_BPK = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    turn_BPK = jnp.broadcast_to(turn_BPK, (batch, *turn_BPK.shape[1:]))
    if visible_BV is not None:
        turn_BPK = jnp.take_along_axis(turn_BPK, visible_BV[..., None], axis=1)
    still_K = np.repeat(np.array([1, 0], np.float32), head_dim // 2)
    shape = (batch, traits.num_prefix, head_dim)
    still_BPK = jnp.broadcast_to(still_K[None, None], shape)
    turn_BLK = jnp.concatenate([still_BPK, turn_BPK], axis=1)
    return placement.place("inputs", jax.lax.stop_gradient(turn_BLK))


def _augment(traits: Traits, centre_BP2: Array, key_B: Key) -> Array:
    """Returns coordinates that are shifted, then stretched along each axis and along both."""

    def draw(number: int, size: int, limit: float) -> Array:
        key = keys.fold(key_B, number)
        return limit * keys.draw(jax.random.uniform, key, (1, size), minval=-1.0)

    if traits.rotary_shift:
        centre_BP2 = centre_BP2 + draw(0, 2, traits.rotary_shift)
    for number, size, most in (
        (1, 2, traits.rotary_jitter),
        (2, 1, traits.rotary_rescale),
    ):
        if most:
            centre_BP2 = centre_BP2 * jnp.exp(draw(number, size, math.log(most)))
    return centre_BP2


def turn(x_BLHK: Array, turn_BLK: Array) -> Array:
    """Returns queries or keys of heads, turned by the angles of their tokens."""
    cos, sin = jnp.split(turn_BLK.astype(x_BLHK.dtype)[:, :, None], 2, axis=-1)
    first, second = jnp.split(x_BLHK, 2, axis=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return placement.place("heads", jnp.concatenate(turned, axis=-1))
