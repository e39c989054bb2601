"""RandAugment and random erasing: each operation as Pillow's, and what is drawn how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageOps

from flax_adapt import defaults
from flax_adapt.base import keys
from flax_adapt.data import examples
from flax_adapt.data.images import image, randaugment

RNG = np.random.default_rng(0)
# Smooth, so that a coordinate off by a part of a pixel shows as little more than that.
ROWS, COLUMNS = np.mgrid[:12, :12]
PIXELS = np.stack(
    [ROWS * 15 + COLUMNS, 200 - 9 * COLUMNS, (ROWS + COLUMNS) * 7], axis=-1
)
PIXELS = (PIXELS + RNG.integers(0, 20, (12, 12, 3))).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
LEVEL = 0.9
FILL = (128, 128, 128)
NAMES = [*randaugment.COLOURS, *randaugment.MOVES]


def affine(*numbers):
    how = Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR
    return PICTURE.transform((12, 12), *how, fillcolor=FILL)


def solarize_add(pixels):
    brighter = np.minimum(pixels.astype(int) + int(LEVEL * 110), 255)
    return Image.fromarray(np.where(pixels < 128, brighter, pixels).astype(np.uint8))


def enhanced(kind, sign):
    return kind(PICTURE).enhance(max(0.1, 1 + 0.9 * LEVEL * sign))


# What timm does at this level, by Pillow: (sign) -> image.
EXPECTED = {
    "auto_contrast": lambda sign: ImageOps.autocontrast(PICTURE),
    "equalize": lambda sign: ImageOps.equalize(PICTURE),
    "invert": lambda sign: ImageOps.invert(PICTURE),
    "posterize": lambda sign: ImageOps.posterize(PICTURE, 4 - int(LEVEL * 4)),
    "solarize": lambda sign: ImageOps.solarize(PICTURE, 256 - int(LEVEL * 256)),
    "solarize_add": lambda sign: solarize_add(PIXELS),
    "color": lambda sign: enhanced(ImageEnhance.Color, sign),
    "contrast": lambda sign: enhanced(ImageEnhance.Contrast, sign),
    "brightness": lambda sign: enhanced(ImageEnhance.Brightness, sign),
    "sharpness": lambda sign: enhanced(ImageEnhance.Sharpness, sign),
    "rotate": lambda sign: PICTURE.rotate(
        30 * LEVEL * sign, Image.Resampling.BILINEAR, fillcolor=FILL
    ),
    "shear_x": lambda sign: affine(1, 0.3 * LEVEL * sign, 0, 0, 1, 0),
    "shear_y": lambda sign: affine(1, 0, 0, 0.3 * LEVEL * sign, 1, 0),
    "translate_x": lambda sign: affine(1, 0, 0.45 * LEVEL * sign * 12, 0, 1, 0),
    "translate_y": lambda sign: affine(1, 0, 0, 0, 1, 0.45 * LEVEL * sign * 12),
}


@pytest.fixture(scope="module")
def operate():
    return jax.jit(randaugment.operate)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_pillows(operate, name, sign):
    x_YXC = jnp.float32(PIXELS) / 255
    found = operate(x_YXC, NAMES.index(name), jnp.float32(LEVEL), jnp.float32(sign))
    expected = np.float32(EXPECTED[name](sign)) / 255
    # Pillow rounds every value, and the mean of a contrast, to a whole level.
    np.testing.assert_allclose(found, expected, atol=2.01 / 255)


def section(**changes):
    return ConfigDict({**defaults.NO_AUGMENT, **changes})


def test_half_of_the_operations_happen_and_each_equally_often():
    x_YXC = jnp.float32(PIXELS[:6, :6]) / 255
    key_B = jax.random.split(jax.random.key(0), 600)
    one = jax.jit(jax.vmap(lambda key: randaugment.randaugment(x_YXC, key, 1, 9.0)))
    changed = np.any(
        np.abs(np.asarray(one(key_B)) - x_YXC[None]) > 1e-4, axis=(1, 2, 3)
    )
    assert 0.42 < changed.mean() < 0.58


def test_erasing_is_as_often_and_as_large_as_asked_and_nothing_else_changes():
    config = ConfigDict(
        dict(
            channels=1,
            mean=(0.5,),
            std=(0.25,),
            augment=section(erase_probability=0.25),
        )
    )
    image_BYXC = np.full((400, 32, 32, 1), 128, np.uint8)
    key_B = keys.example_keys(jax.random.key(1), jnp.arange(400))
    run = jax.jit(lambda x, key_B: image.preprocess(x, key_B, config, config.augment))
    found = np.asarray(run(image_BYXC, key_B))
    plain = np.float32((128 / 255 - 0.5) / 0.25)
    erased = np.abs(found - plain) > 1e-6
    share = erased.mean(axis=(1, 2, 3))
    assert 0.19 < np.mean(share > 0) < 0.31
    areas = share[share > 0]
    assert areas.min() > 0.01
    assert areas.max() < 0.40
    assert abs(found[erased].mean()) < 0.05
    assert 0.95 < found[erased].std() < 1.05
    rows, columns = (
        erased[np.argmax(share), ..., 0].any(1),
        erased[np.argmax(share), ..., 0].any(0),
    )
    box = erased[np.argmax(share), ..., 0][np.ix_(rows, columns)]
    assert box.all()  # one whole box


def test_an_example_is_augmented_by_its_own_key_alone():
    config = section(randaugment_operations=2, erase_probability=0.5)
    data = ConfigDict(dict(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3))
    key_B = keys.example_keys(jax.random.key(0), jnp.arange(4))
    run = jax.jit(lambda x, key_B: image.preprocess(x, key_B, data, config))
    whole = run(np.stack([PIXELS] * 4), key_B)
    parts = [run(np.stack([PIXELS] * 4)[i : i + 2], key_B[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    assert len({np.asarray(row).tobytes() for row in whole}) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(randaugment_operations=11),
            "randaugment_operations=11: must be a number 0",
        ),
        (
            dict(randaugment_magnitude=11.0),
            r"randaugment_magnitude=11.0: must be in \[0",
        ),
        (dict(erase_probability=2.0), r"erase_probability=2.0: must be in \[0, 1\]"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        examples.check_augment("augment", section(**changes), 3)
