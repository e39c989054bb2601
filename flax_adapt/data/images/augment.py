"""Random views of images, on the device: crops, colours, blur, flips.

The view of an example depends on its own key, and not on the rest of the batch. The order
of operations is that of SimCLR and MoCo-v3: crop, jitter, grey, blur, solarize, flip.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import keys
from flax_adapt.base.types import Array, Key

# Constants folded into an example's key, one for each purpose; no other purpose uses them.
FLIP, CROP, JITTER, GREY, BLUR, SOLARIZE = 7001, 7002, 7003, 7004, 7005, 7006
# Of a random resized crop (Szegedy et al. 2015, as in torchvision.RandomResizedCrop).
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10
SOLARIZE_THRESHOLD = 0.5


def augment(x_BYXC: Array, key_B: Key, config_augment: ConfigDict) -> Array:
    """Returns a random view of every image, float32 [B, Y, X, C] in [0, 1] as `x_BYXC`.

    config_augment is static: operations of probability or strength 0 are not traced. Its
    fields:

    flip                  bool; mirrored in half of the cases
    min_crop_area         the least share of the area that is cut out; 1: no cut
    jitter_probability    of the next four together, in this order (torchvision shuffles)
    brightness, contrast, saturation
                          b: a factor in [max(0, 1 - b), 1 + b]; 0: none
    hue                   h: a shift in [-h, h], in turns of the colour circle; 0: none
    grey_probability      of the luma in all channels
    blur_probability      of a Gaussian blur
    blur_sigma            (min, max) of its standard deviation, in pixels of x_BYXC
    solarize_probability  of inverting all above 0.5
    """
    if config_augment["min_crop_area"] < 1:
        x_BYXC = random_resized_crop(x_BYXC, key_B, config_augment["min_crop_area"])
    for name, (number, change) in CHANGES.items():
        probability = config_augment[f"{name}_probability"]
        if probability > 0:
            made = functools.partial(change, config_augment=config_augment)
            x_BYXC = _change_some(made, x_BYXC, keys.fold(key_B, number), probability)
    if config_augment["flip"]:
        import dm_pix

        x_BYXC = jax.vmap(dm_pix.random_flip_left_right)(keys.fold(key_B, FLIP), x_BYXC)
    return x_BYXC


def random_resized_crop(x_BYXC: Array, key_B: Key, min_area: float) -> Array:
    """Returns a random box of every image, resized to the size of the image.

    Boxes have `min_area`..1 of its area and aspect 3/4..4/3: torchvision's rule, bilinear,
    with real numbers instead of whole pixels.
    """
    _, height, width, channels = x_BYXC.shape
    box_B4 = keys.draw(_draw_box, keys.fold(key_B, CROP), min_area, height, width)

    def cut(x_YXC, box_4):
        size = jnp.array([height, width], jnp.float32)
        scale = size / box_4[2:]
        return jax.image.scale_and_translate(
            x_YXC, (height, width, channels), (0, 1), scale, -box_4[:2] * scale,
            method="linear", antialias=False,
        )  # fmt: skip

    return jax.vmap(cut)(x_BYXC, box_B4)


def _draw_box(key: Key, min_area: float, height: int, width: int) -> Array:
    """Returns float32 [4]: top, left, height, width of a box inside the image."""
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    tries = (CROP_TRIES,)
    area = jax.random.uniform(area_key, tries, minval=min_area) * (height * width)
    low, high = np.log(ASPECT_RATIOS)
    ratio = jnp.exp(jax.random.uniform(ratio_key, tries, minval=low, maxval=high))
    sizes = jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)], axis=1)
    whole = jnp.array([height, width], jnp.float32)
    fits = jnp.all(sizes <= whole[None], axis=1)
    # The first that fits, as torchvision; the whole image where none of ten does.
    size = jnp.where(jnp.any(fits), sizes[jnp.argmax(fits)], whole)
    return jnp.concatenate([jax.random.uniform(place_key, (2,)) * (whole - size), size])


def _change_some(
    change: Callable[[Array, Key], Array], x_BYXC: Array, key_B: Key, probability: float
) -> Array:
    """Returns `change(x_YXC, key)` of every image with this probability, else the image."""

    def one(x_YXC, key):
        chosen_key, key = jax.random.split(key)
        chosen = jax.random.bernoulli(chosen_key, probability)
        return jnp.where(chosen, change(x_YXC, key), x_YXC)

    return jax.vmap(one)(x_BYXC, key_B)


def adjust_brightness(x_YXC: Array, factor: Array) -> Array:
    """Returns the pixels times `factor`, clipped to [0, 1], as torchvision; dm_pix adds."""
    return jnp.clip(x_YXC * factor, 0, 1)


def adjust_contrast(x_YXC: Array, factor: Array) -> Array:
    """Returns pixels with `factor` times their distance to the mean luma, clipped to [0, 1].

    As torchvision; dm_pix scales every channel about its own mean. Ours: without 3
    channels the mean of all channels stands for the luma.
    """
    import dm_pix

    luma_YXC = dm_pix.rgb_to_grayscale(x_YXC) if x_YXC.shape[-1] == 3 else x_YXC
    mean = jnp.mean(luma_YXC)
    return jnp.clip(mean + factor * (x_YXC - mean), 0, 1)


def adjust_saturation(x_YXC: Array, factor: Array) -> Array:
    """Returns pixels with `factor` times their distance to the luma, clipped to [0, 1].

    As torchvision; dm_pix scales the S of HSV instead, which keeps the largest channel
    and not the luma.
    """
    import dm_pix

    luma_YXC = dm_pix.rgb_to_grayscale(x_YXC, keep_dims=True)
    return jnp.clip(luma_YXC + factor * (x_YXC - luma_YXC), 0, 1)


def adjust_hue(x_YXC: Array, turns: Array) -> Array:
    """Returns pixels whose H of HSV is larger by `turns`, as torchvision."""
    import dm_pix

    return dm_pix.adjust_hue(x_YXC, turns)


def _draw_factor(key: Key, strength: float) -> Array:
    return jax.random.uniform(key, minval=max(0, 1 - strength), maxval=1 + strength)


def _draw_turns(key: Key, strength: float) -> Array:
    return jax.random.uniform(key, minval=-strength, maxval=strength)


# Field of the jitter -> (draws a number from its strength, changes pixels by that number).
JITTERS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "brightness": (_draw_factor, adjust_brightness),
    "contrast": (_draw_factor, adjust_contrast),
    "saturation": (_draw_factor, adjust_saturation),
    "hue": (_draw_turns, adjust_hue),
}


def _jitter(x_YXC: Array, key: Key, config_augment: ConfigDict) -> Array:
    draw_keys = jax.random.split(key, len(JITTERS))
    for (field, (draw, change)), draw_key in zip(
        JITTERS.items(), draw_keys, strict=True
    ):
        strength = config_augment[field]
        if strength > 0:
            x_YXC = change(x_YXC, draw(draw_key, strength))
    return x_YXC


def _grey(x_YXC: Array, key: Key, config_augment: ConfigDict) -> Array:
    import dm_pix

    return dm_pix.rgb_to_grayscale(x_YXC, keep_dims=True)


def gaussian_blur(x_YXC: Array, sigma: Array) -> Array:
    """Returns the image blurred along its rows and columns by a Gaussian.

    sigma: float32 [], above 0, in pixels. Ours: the kernel is as long as the image, so
    that it is not cut off, and the weights inside the border are scaled to sum to 1.
    dm_pix pads with zeros, which darkens the border. It convolves, which is slower than
    these products of matrices where every example has its own kernel.
    """
    for axis, size in enumerate(x_YXC.shape[:2]):
        place = jnp.arange(size, dtype=jnp.float32)
        distance = (place[:, None] - place[None]) / sigma
        weights = jax.nn.softmax(-(distance**2) / 2, axis=1)
        mixed = jnp.tensordot(weights, x_YXC, (1, axis), precision="highest")
        x_YXC = jnp.moveaxis(mixed, 0, axis)
    return x_YXC


def _blur(x_YXC: Array, key: Key, config_augment: ConfigDict) -> Array:
    low, high = config_augment["blur_sigma"]
    return gaussian_blur(x_YXC, jax.random.uniform(key, minval=low, maxval=high))


def _solarize(x_YXC: Array, key: Key, config_augment: ConfigDict) -> Array:
    import dm_pix

    return dm_pix.solarize(x_YXC, SOLARIZE_THRESHOLD)


# Operation -> (constant folded into the key, function), in order; each has a field
# `NAME_probability`.
CHANGES: dict[str, tuple[int, Callable[..., Array]]] = {
    "jitter": (JITTER, _jitter),
    "grey": (GREY, _grey),
    "blur": (BLUR, _blur),
    "solarize": (SOLARIZE, _solarize),
}
