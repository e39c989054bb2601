"""Which patches of an image are hidden: index maths on given noise; the noise itself.

Every row hides the same number of patches, so all shapes are static. The noise is an
argument, so that any reference can be matched exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_adapt import keys
from flax_adapt.errors import UserError
from flax_adapt.types import Array, Key


class Hiding(NamedTuple):
    """Where the patches of each image go.

    visible_BV: int32, the patches that stay, in the order the encoder sees them.
    order_BL: int32, for every patch its place in "visible first, then hidden".
    hidden_BL: bool, true where the patch is hidden.
    """

    visible_BV: Array
    order_BL: Array
    hidden_BL: Array


def patch_noise(key_B: Key, num_patches: int) -> Array:
    """Returns noise_BL: uniform float32 in [0, 1), every example from its own key."""
    return keys.draw(jax.random.uniform, key_B, (num_patches,))


def num_visible(num_patches: int, hidden_ratio: float) -> int:
    """Returns int(L * (1 - ratio)), in Python floats as the reference rounds."""
    count = int(num_patches * (1 - hidden_ratio))
    if not 0 < count <= num_patches:
        raise UserError(
            f"hidden_ratio={hidden_ratio} leaves {count} of {num_patches} patches "
            "visible; choose a ratio in [0, 1) that leaves at least one"
        )
    return count


def hide_patches(noise_BL: Array, num_visible: int) -> Hiding:
    """Keeps the `num_visible` patches of lowest noise in every row.

    He et al. 2022, official code `random_masking`: argsort of the noise, per image.
    """
    shuffle_BL = jnp.argsort(noise_BL, axis=1)
    order_BL = jnp.argsort(shuffle_BL, axis=1)
    return Hiding(shuffle_BL[:, :num_visible], order_BL, order_BL >= num_visible)
