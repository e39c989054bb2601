"""RandAugment and random erasing, on the device, as MAE fine-tunes.

Fields of a section `augment` (see `augment.augment` for the others):

    randaugment_operations  how many an image gets, after all other changes; 0: none
    randaugment_magnitude   0 to 10
    erase_probability       of erasing a box, after normalisation

RandAugment (Cubuk et al. 2020) in the form of timm's "rand-m9-mstd0.5-inc1": every operation
gets stronger with the magnitude, and each of the `operations` drawn for an image happens with
probability 0.5. Random erasing (Zhong et al. 2020) in timm's mode "pixel".

Pixels are float32 in [0, 1] and not rounded to 256 levels between operations (ours). Pixels
from outside the image are grey, 128 / 255, timm's value without a mean;
interpolation is bilinear (timm draws bilinear or bicubic).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flax_adapt.base import keys
from flax_adapt.base.types import Array, Key
from flax_adapt.data.images import augment

# Constants folded into an example's key, see `augment`.
RANDAUGMENT, ERASE = 7007, 7008
MAX_MAGNITUDE = 10.0
MAGNITUDE_STD = 0.5
OPERATION_PROBABILITY = 0.5
FILL = 128 / 255
# Share of the area and aspect ratio of an erased box; how many boxes are tried.
ERASE_AREA, ERASE_RATIO, ERASE_TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10

# (image [Y, X, C], level in [0, 1], sign -1 or 1) -> image
Operation = Callable[[Array, Array, Array], Array]


def randaugment_batch(x_BYXC: Array, key_B: Key, config_augment: ConfigDict) -> Array:
    """Returns images after RandAugment, float32 [B, Y, X, C] in [0, 1]."""
    operations = config_augment["randaugment_operations"]
    if not operations:
        return x_BYXC
    magnitude = config_augment["randaugment_magnitude"]
    return jax.vmap(lambda x_YXC, key: randaugment(x_YXC, key, operations, magnitude))(
        x_BYXC, keys.fold(key_B, RANDAUGMENT)
    )


def erase_batch(x_BYXC: Array, key_B: Key, config_augment: ConfigDict) -> Array:
    """Returns normalised images, float32 [B, Y, X, C], after random erasing."""
    probability = config_augment["erase_probability"]
    if not probability:
        return x_BYXC
    return jax.vmap(lambda x_YXC, key: erase(x_YXC, key, probability))(
        x_BYXC, keys.fold(key_B, ERASE)
    )


def randaugment(x_YXC: Array, key: Key, operations: int, magnitude: float) -> Array:
    """Returns one image, float32 [Y, X, C] in [0, 1], after `operations` random operations."""
    for layer_key in jax.random.split(key, operations):
        x_YXC = _random_operation(x_YXC, layer_key, magnitude)
    return x_YXC


def _random_operation(x_YXC: Array, key: Key, magnitude: float) -> Array:
    choice_key, chance_key, level_key, sign_key = jax.random.split(key, 4)
    index = jax.random.randint(choice_key, (), 0, len(COLOURS) + len(MOVES))
    happens = jax.random.bernoulli(chance_key, OPERATION_PROBABILITY)
    noise = MAGNITUDE_STD * jax.random.normal(level_key)
    level = jnp.clip(magnitude + noise, 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
    sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
    return jnp.where(happens, operate(x_YXC, index, level, sign), x_YXC)


def operate(x_YXC: Array, index: Array, level: Array, sign: Array) -> Array:
    """Returns the image after operation number `index` of COLOURS followed by MOVES.

    All moves share one interpolation, which has the identity matrix for a colour operation.
    """
    height, width, _ = x_YXC.shape
    branches = [_stay] * len(COLOURS) + list(MOVES.values())
    matrix_23 = jax.lax.switch(
        index, branches, level * sign, jnp.float32(height), jnp.float32(width)
    )
    x_YXC = warp(x_YXC, matrix_23)
    colours: list[Operation] = [*COLOURS.values()] + [_keep] * len(MOVES)
    return jax.lax.switch(index, colours, x_YXC, level, sign)


def warp(x_YXC: Array, matrix_23: Array) -> Array:
    """Returns the affine transform of an image, as Pillow defines it.

    matrix_23: (x, y) of the source from (x, y, 1) of the result, in pixels whose centres
    are at .5. Bilinear; FILL where the source lies outside the image.
    """
    height, width, _ = x_YXC.shape
    y_YX, x_YX = jnp.mgrid[:height, :width] + 0.5
    place_3YX = jnp.stack([x_YX, y_YX, jnp.ones_like(x_YX)])
    from_x_YX, from_y_YX = jnp.einsum("ij,jyx->iyx", matrix_23, place_3YX)
    inside_YX = (from_x_YX >= 0) & (from_x_YX < width)
    inside_YX &= (from_y_YX >= 0) & (from_y_YX < height)

    def sample(channel_YX: Array) -> Array:
        at = [from_y_YX - 0.5, from_x_YX - 0.5]
        return jax.scipy.ndimage.map_coordinates(channel_YX, at, 1, mode="nearest")

    moved_YXC = jax.vmap(sample, in_axes=-1, out_axes=-1)(x_YXC)
    return jnp.where(inside_YX[..., None], moved_YXC, FILL)


def _stay(amount: Array, height: Array, width: Array) -> Array:
    del amount, height, width
    return jnp.eye(2, 3)


def _rotation(amount: Array, height: Array, width: Array) -> Array:
    """Up to 30 degrees about the centre, counter-clockwise, as Pillow turns."""
    angle = amount * math.radians(30)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.array(
        [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]
    )


def _shear_x(amount: Array, height: Array, width: Array) -> Array:
    del height, width
    return jnp.eye(2, 3).at[0, 1].set(0.3 * amount)


def _shear_y(amount: Array, height: Array, width: Array) -> Array:
    del height, width
    return jnp.eye(2, 3).at[1, 0].set(0.3 * amount)


def _translate_x(amount: Array, height: Array, width: Array) -> Array:
    del height
    return jnp.eye(2, 3).at[0, 2].set(0.45 * amount * width)


def _translate_y(amount: Array, height: Array, width: Array) -> Array:
    del width
    return jnp.eye(2, 3).at[1, 2].set(0.45 * amount * height)


# (level * sign, height, width) -> matrix of `warp`
MOVES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "rotate": _rotation,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


def _keep(x_YXC: Array, level: Array, sign: Array) -> Array:
    del level, sign
    return x_YXC


def _auto_contrast(x_YXC: Array, level: Array, sign: Array) -> Array:
    """Scales every channel to the range from 0 to 1."""
    del level, sign
    low_C, high_C = jnp.min(x_YXC, (0, 1)), jnp.max(x_YXC, (0, 1))
    range_C = jnp.where(high_C > low_C, high_C - low_C, 1)
    spread_YXC = (x_YXC - low_C[None, None]) / range_C[None, None]
    return jnp.where((high_C > low_C)[None, None], spread_YXC, x_YXC)


def _equalize(x_YXC: Array, level: Array, sign: Array) -> Array:
    """Makes the histogram of every channel flat, by Pillow's table of 256 levels."""
    del level, sign
    levels_YXC = jnp.round(x_YXC * 255).astype(jnp.int32)

    def one(levels_YX: Array) -> Array:
        count_256 = jnp.bincount(levels_YX.ravel(), length=256)
        last = 255 - jnp.argmax(count_256[::-1] > 0)
        step = (levels_YX.size - count_256[last]) // 255
        before_256 = jnp.cumsum(count_256) - count_256
        table_256 = jnp.clip((before_256 + step // 2) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table_256[levels_YX], levels_YX)

    return jax.vmap(one, in_axes=-1, out_axes=-1)(levels_YXC) / jnp.float32(255)


def _invert(x_YXC: Array, level: Array, sign: Array) -> Array:
    del level, sign
    return 1 - x_YXC


def _posterize(x_YXC: Array, level: Array, sign: Array) -> Array:
    """Keeps 4 bits of each level, down to none at the greatest magnitude."""
    del sign
    unit = 2.0 ** (8 - (4 - jnp.floor(level * 4)))
    return jnp.floor(jnp.round(x_YXC * 255) / unit) * unit / 255


def _solarize(x_YXC: Array, level: Array, sign: Array) -> Array:
    """Inverts bright pixels, at the greatest magnitude all."""
    del sign
    threshold = 256 - jnp.floor(level * 256)
    return jnp.where(jnp.round(x_YXC * 255) < threshold, x_YXC, 1 - x_YXC)


def _solarize_add(x_YXC: Array, level: Array, sign: Array) -> Array:
    """Brightens dark pixels, by up to 110 of 255."""
    del sign
    brighter_YXC = jnp.minimum(x_YXC + jnp.floor(level * 110) / 255, 1)
    return jnp.where(jnp.round(x_YXC * 255) < 128, brighter_YXC, x_YXC)


def _factor(level: Array, sign: Array) -> Array:
    return jnp.maximum(0.1, 1 + 0.9 * level * sign)


def _color(x_YXC: Array, level: Array, sign: Array) -> Array:
    if x_YXC.shape[-1] != 3:
        return x_YXC  # only red, green and blue together are a colour
    return augment.adjust_saturation(x_YXC, _factor(level, sign))


def _contrast(x_YXC: Array, level: Array, sign: Array) -> Array:
    return augment.adjust_contrast(x_YXC, _factor(level, sign))


def _brightness(x_YXC: Array, level: Array, sign: Array) -> Array:
    return augment.adjust_brightness(x_YXC, _factor(level, sign))


def _sharpness(x_YXC: Array, level: Array, sign: Array) -> Array:
    """Sharpens or blurs by Pillow's filter SMOOTH, which leaves the border unchanged."""
    kernel_33 = jnp.ones((3, 3)).at[1, 1].set(5) / 13
    smooth = jax.vmap(
        lambda channel_YX: jax.scipy.signal.convolve2d(channel_YX, kernel_33, "valid"),
        in_axes=-1,
        out_axes=-1,
    )(x_YXC)
    smooth_YXC = x_YXC.at[1:-1, 1:-1].set(smooth)
    factor = _factor(level, sign)
    return jnp.clip(smooth_YXC + factor * (x_YXC - smooth_YXC), 0, 1)


COLOURS: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}


def erase(x_YXC: Array, key: Key, probability: float) -> Array:
    """Returns one normalised image with a random box of standard normal noise.

    It is the first of ten boxes that fits; where none fits nothing is erased.
    """
    height, width, _ = x_YXC.shape
    chance_key, area_key, ratio_key, place_key, noise_key = jax.random.split(key, 5)
    tries = (ERASE_TRIES,)
    low, high = (share * height * width for share in ERASE_AREA)
    area = jax.random.uniform(area_key, tries, minval=low, maxval=high)
    low, high = (math.log(ratio) for ratio in ERASE_RATIO)
    ratio = jnp.exp(jax.random.uniform(ratio_key, tries, minval=low, maxval=high))
    tall, wide = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits)
    tall, wide = tall[first], wide[first]
    room = jnp.stack([height - tall, width - wide])
    top, left = jnp.floor(jax.random.uniform(place_key, (2,)) * (room + 1))
    row_Y, column_X = jnp.arange(height), jnp.arange(width)
    inside_Y = (row_Y >= top) & (row_Y < top + tall)
    inside_X = (column_X >= left) & (column_X < left + wide)
    happens = jax.random.bernoulli(chance_key, probability) & jnp.any(fits)
    erased_YX = inside_Y[:, None] & inside_X[None] & happens
    noise_YXC = jax.random.normal(noise_key, x_YXC.shape, x_YXC.dtype)
    return jnp.where(erased_YX[..., None], noise_YXC, x_YXC)
