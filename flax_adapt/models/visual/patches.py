"""Images as patches, and fixed positions of the patches."""

import math
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array, Key


class ImageConfig(Protocol):
    """The size of the images that a model takes, as its architecture has it."""

    @property
    def image_size(self) -> int: ...
    @property
    def channels(self) -> int: ...


def check_image(image_BYXC: Array, config: ImageConfig) -> Array:
    """Returns the image unchanged; raises UserError if its size is not the model's."""
    expected = (config.image_size, config.image_size, config.channels)
    if image_BYXC.shape[1:] != expected:
        raise UserError(
            f"images are {image_BYXC.shape[1:]} but the model takes {expected} (rows, "
            "columns, channels); change data.image_size, data.channels or the model"
        )
    return image_BYXC


def patchify(image_BYXC: Array, patch_size: int) -> Array:
    """Returns patches_BLP: row by row; pixels in (row, column, channel) order."""
    b, y, x, c = image_BYXC.shape
    rows, columns = y // patch_size, x // patch_size
    patches = image_BYXC.reshape(b, rows, patch_size, columns, patch_size, c)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, -1)


def unpatchify(patches_BLP: Array, patch_size: int) -> Array:
    """Returns image_BYXC, square: undoes `patchify`."""
    b, num_patches, pixels = patches_BLP.shape
    side, c = math.isqrt(num_patches), pixels // patch_size**2
    image = patches_BLP.reshape(b, side, side, patch_size, patch_size, c)
    size = side * patch_size
    return image.transpose(0, 1, 3, 2, 4, 5).reshape(b, size, size, c)


def sincos_position(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns fixed sin-cos positions on a square grid, after rows of zeros for other tokens.

    shape: [1, rows, D]; the patches are the largest square of the rows, so [1, 1 + L, D] has
    one row for CLS.

    He et al. 2022, official code: [sin w | cos w | sin h | cos h] with
    omega_i = 10000^(-i / (D/4)). The width w comes first in that code, and so in every
    checkpoint. An initialiser; `key` is unused.
    """
    del key
    _, length, width = shape
    if width % 4:
        raise UserError(f"width={width} must be a multiple of 4 for sin-cos positions")
    side = math.isqrt(length)
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.divmod(np.arange(side**2), side)
    angles = [np.outer(place, omega) for place in (column, row)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    others = np.zeros((length - side**2, width))
    return jnp.asarray(np.concatenate([others, table])[None], dtype)
