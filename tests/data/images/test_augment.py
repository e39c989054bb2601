"""Views of images: every change against a reference, and what it may depend on."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageOps

from flax_adapt import defaults
from flax_adapt.base import errors, keys
from flax_adapt.data import examples
from flax_adapt.data.images import augment
from flax_adapt.train import sharding

SIZE, RNG = 8, np.random.default_rng(2)
PIXELS = RNG.integers(0, 256, (16, SIZE, SIZE, 3), np.uint8)
X_BYXC, LUMA = np.float32(PIXELS) / 255, np.float32([0.2989, 0.587, 0.114])
KEY_B = keys.example_keys(jax.random.key(0), jnp.arange(500))
VIEW = defaults.views(min_crop_area=0.2, blur_probability=0.5)[1]  # all happens


def run(x_BYXC, key_B=None, **fields):
    section = ConfigDict({**defaults.NO_AUGMENT, **fields})
    key_B = KEY_B[: len(x_BYXC)] if key_B is None else key_B
    view = jax.jit(lambda x, key_B: augment.augment(x, key_B, section))
    return np.asarray(view(x_BYXC, key_B))


def constant(value, count=500):
    """Images of 2 x 2 pixels of one colour."""
    return np.broadcast_to(np.float32(value), (count, 2, 2, 3))


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("change", "reference"),
    [
        (augment.adjust_brightness, ImageEnhance.Brightness),
        (augment.adjust_contrast, ImageEnhance.Contrast),
        (augment.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_factors_mean_what_they_mean_to_pillow(change, reference, factor):
    """torchvision hands such images to Pillow; it computes in whole numbers."""
    wanted = reference(Image.fromarray(PIXELS[0])).enhance(factor)
    out = change(jnp.asarray(X_BYXC[0]), factor)
    np.testing.assert_allclose(out * 255, np.asarray(wanted), atol=1.6)
    assert 0 <= out.min() <= out.max() <= 1


def test_the_contrast_of_one_channel_is_about_its_mean():
    x_YXC = np.float32([[0.1, 0.3], [0.4, 0.8]])[..., None]
    out = augment.adjust_contrast(jnp.asarray(x_YXC), 0.5)
    np.testing.assert_allclose(out, 0.5 * x_YXC + 0.2, rtol=1e-6)


def test_hue_turns_the_colour_circle():
    x_YXC = X_BYXC[0]
    third = augment.JITTERS["hue"][1](jnp.asarray(x_YXC), 1 / 3)
    np.testing.assert_allclose(third, x_YXC[..., [2, 0, 1]], atol=1e-5)
    hsv = [colorsys.rgb_to_hsv(*map(float, rgb)) for rgb in x_YXC.reshape(-1, 3)]
    wanted = [colorsys.hsv_to_rgb((h - 0.1) % 1, s, v) for h, s, v in hsv]
    out = augment.JITTERS["hue"][1](jnp.asarray(x_YXC), -0.1)
    np.testing.assert_allclose(out.reshape(-1, 3), wanted, atol=1e-5)


def test_blur_is_the_convolution_with_a_gaussian():
    size, sigma = 31, 1.3
    x_YXC = np.float32(RNG.random((size, size, 2)))
    out = augment.gaussian_blur(jnp.asarray(x_YXC), sigma)
    taps = np.exp(-(np.arange(-10, 11) ** 2) / (2 * sigma**2))
    wanted = x_YXC
    for axis in (0, 1):
        kernel = taps / taps.sum()
        wanted = np.apply_along_axis(np.convolve, axis, wanted, kernel, "same")
    inside = slice(10, -10)  # the reference sees zeros beyond the border
    np.testing.assert_allclose(out[inside, inside], wanted[inside, inside], atol=1e-6)


def test_blur_keeps_what_is_constant_and_the_sum_of_what_is_not():
    plain = jnp.full((SIZE, SIZE, 3), 0.7)
    np.testing.assert_allclose(augment.gaussian_blur(plain, 2.0), plain, rtol=1e-6)
    dot = jnp.zeros((31, 31, 1)).at[15, 14].set(1)
    blurred = augment.gaussian_blur(dot, 2.0)
    np.testing.assert_allclose(blurred.sum(), 1, rtol=1e-5)
    assert blurred.max() < 0.05
    np.testing.assert_array_equal(augment.gaussian_blur(dot, 1e-3), dot)


def test_solarizing_inverts_what_is_bright():
    out = run(X_BYXC, solarize_probability=1.0)
    wanted = [ImageOps.solarize(Image.fromarray(pixels)) for pixels in PIXELS]
    np.testing.assert_allclose(out * 255, np.stack(wanted), atol=1e-3)


def test_grey_is_the_luma_in_all_channels():
    out = run(X_BYXC, grey_probability=1.0)
    luma = np.broadcast_to((X_BYXC @ LUMA)[..., None], X_BYXC.shape)
    np.testing.assert_allclose(out, luma, rtol=1e-5)


def test_the_changes_come_in_the_order_of_moco_v3():
    always = {f"{name}_probability": 1.0 for name in ("grey", "blur", "solarize")}
    out = run(X_BYXC[:2], **always, blur_sigma=(0.7, 0.7))
    for image_YXC, x_YXC in zip(out, X_BYXC[:2], strict=True):
        grey_YXC = jnp.asarray(np.repeat((x_YXC @ LUMA)[..., None], 3, axis=-1))
        blurred = np.asarray(augment.gaussian_blur(grey_YXC, 0.7))
        wanted = np.where(blurred < 0.5, blurred, 1 - blurred)
        np.testing.assert_allclose(image_YXC, wanted, atol=1e-5)


def test_factors_and_shifts_fill_their_range():
    red = constant([0.25, 0, 0])
    drawn = run(red, jitter_probability=1.0, brightness=0.4, hue=0.1)[:, 0, 0]
    factors = drawn[:, 0] / 0.25
    assert 0.6 - 1e-6 <= factors.min() < 0.63
    assert 1.37 < factors.max() <= 1.4 + 1e-6
    # Red turns to green, or back to blue.
    turns = (drawn[:, 1] - drawn[:, 2]) / drawn[:, 0] / 6
    assert -0.1 - 1e-6 <= turns.min() < -0.095
    assert 0.095 < turns.max() <= 0.1 + 1e-6
    assert abs(np.corrcoef(factors, turns)[0, 1]) < 0.2


def test_no_factor_is_negative():
    assert 0 <= keys.draw(augment._draw_factor, KEY_B, 1.5).min() < 0.05


def test_sigmas_fill_their_range():
    dots = np.zeros((500, 21, 21, 1), np.float32)
    dots[:, 10, 10] = 1
    blurred = run(dots, blur_probability=1.0, blur_sigma=(0.5, 2.0))
    place = np.arange(21) - 10
    sigmas = np.sqrt((blurred.sum((2, 3)) * place**2).sum(1))
    assert 0.45 < sigmas.min() < 0.55
    assert 1.9 < sigmas.max() < 2.01


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_a_probability_is_the_share_that_is_changed(probability):
    out = run(constant(0.9), solarize_probability=probability)
    share = np.mean(out[:, 0, 0, 0] < 0.5)
    np.testing.assert_allclose(share, probability, atol=0.1 * (probability < 1))


def test_what_is_off_is_not_traced():
    def equations(**fields):
        section = ConfigDict({**defaults.NO_AUGMENT, **fields})
        jaxpr = jax.make_jaxpr(lambda x, key_B: augment.augment(x, key_B, section))
        return len(jaxpr(X_BYXC, KEY_B[:16]).eqns)

    assert equations(brightness=0.4, hue=0.1, blur_sigma=(1.0, 9.0)) == 0
    for name in augment.CHANGES:
        assert equations(**{f"{name}_probability": 0.1}) > 0
    x_BYXC = X_BYXC[:, :1, :1]
    np.testing.assert_array_equal(run(x_BYXC), x_BYXC)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_without_colour_take_the_rest(channels):
    x_BYXC = np.repeat(X_BYXC[..., :1], channels, axis=-1)
    jitter = dict(jitter_probability=1.0, brightness=0.4, contrast=0.4)
    out = run(x_BYXC, **jitter, blur_probability=1.0, solarize_probability=1.0)
    # The channels were the same, and all are treated alike.
    np.testing.assert_allclose(out, np.repeat(out[..., :1], channels, -1), atol=1e-6)
    assert np.all(np.any(out != x_BYXC, axis=(1, 2, 3)))


def test_flips_about_half_and_the_key_alone_decides():
    x_BYXC = RNG.random((200, 2, 4, 3), np.float32)
    flipped = [
        np.all(run(x, KEY_B[:200], flip=True) == x[:, :, ::-1], axis=(1, 2, 3))
        for x in (x_BYXC, x_BYXC[::-1])
    ]
    assert 70 < flipped[0].sum() < 130
    np.testing.assert_array_equal(*flipped)


def draw_boxes(key_B, min_area, size):
    def boxes(key_B):
        return keys.draw(augment._draw_box, key_B, min_area, size, size)

    return jax.jit(boxes)(key_B)


def test_crops_stay_in_the_image_and_keep_the_area():
    boxes = draw_boxes(KEY_B, 0.3, 10)
    top, left, height, width = np.asarray(boxes).T
    assert np.all(top >= 0)
    assert np.all(top + height <= 10 + 1e-5)
    assert np.all(left >= 0)
    assert np.all(left + width <= 10 + 1e-5)
    area, ratio = height * width / 100, width / height
    assert 0.3 - 1e-6 <= area.min() < 0.35
    assert 0.9 < area.max() <= 1 + 1e-6
    assert 0.75 - 1e-6 <= ratio.min() < 0.8
    assert 1.25 < ratio.max() <= 4 / 3 + 1e-5


def test_a_crop_shows_the_pixels_of_its_box():
    """On a ramp, bilinear is exact: every pixel must read its own place in the box."""
    size, key_B = 32, KEY_B[:6]
    place = np.arange(size) + 0.5
    ramp = np.stack(np.broadcast_arrays(place[:, None], place[None], 0 * place), -1)
    ramp_BYXC = jnp.asarray(np.broadcast_to(ramp, (6, size, size, 3)), jnp.float32)
    out = run(ramp_BYXC, key_B, min_crop_area=0.2)
    boxes = keys.draw(
        augment._draw_box, keys.fold(key_B, augment.CROP), 0.2, size, size
    )
    for crop, (top, left, height, width) in zip(out, np.asarray(boxes), strict=True):
        rows, columns = top + height * place / size, left + width * place / size
        rows, columns = rows.clip(0.5, size - 0.5), columns.clip(0.5, size - 0.5)
        np.testing.assert_allclose(crop[..., 0], rows[:, None] + 0 * crop[..., 0], 1e-4)
        np.testing.assert_allclose(crop[..., 1], columns + 0 * crop[..., 1], 1e-4)


@pytest.fixture(scope="module")
def view():
    """(a jitted view, what it makes of the images)."""
    section = ConfigDict(VIEW)
    change = jax.jit(lambda x_BYXC, key_B: augment.augment(x_BYXC, key_B, section))
    return change, np.asarray(change(X_BYXC, KEY_B[:16]))


def test_a_view_depends_on_its_image_and_key_alone(view):
    change, out = view
    order = RNG.permutation(16)
    moved = change(X_BYXC[order], KEY_B[:16][order])
    np.testing.assert_allclose(moved, out[order], atol=1e-6)
    others = X_BYXC.copy()
    others[1:] = 0.5
    new_keys = jnp.concatenate([KEY_B[:1], KEY_B[100:115]])
    np.testing.assert_allclose(change(others, new_keys)[0], out[0], atol=1e-6)
    assert len({image.tobytes() for image in out}) == 16
    assert 0 <= out.min() < out.max() <= 1


def test_eight_devices_make_the_views_of_one(view):
    change, out = view
    mesh = sharding.make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    placed = jax.sharding.NamedSharding(mesh, sharding.BATCH)
    views = change(*jax.device_put((X_BYXC, KEY_B[:16]), placed))
    assert len(views.sharding.device_set) == 8
    np.testing.assert_allclose(views, out, atol=1e-6)


def data_section(channels=3, **fields):
    pixels = dict(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    # There is no such folder: the section is read first.
    return ConfigDict(defaults.image_data("folder:/no", "train", **pixels, **fields))


WRONG = [
    ("flip", 1.0),
    ("min_crop_area", 0.0),
    ("min_crop_area", 1.1),
    ("jitter_probability", 1.1),
    ("brightness", -0.1),
    ("contrast", float("inf")),
    ("saturation", float("nan")),
    ("hue", 0.6),
    ("grey_probability", -0.1),
    ("blur_probability", 2.0),
    ("blur_sigma", (0.0, 1.0)),
    ("blur_sigma", (2.0, 1.0)),
    ("blur_sigma", (1.0,)),
    ("solarize_probability", 1.5),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_wrong_fields_are_named(field, value):
    wrong = {**defaults.NO_AUGMENT, field: value}
    second = (defaults.NO_AUGMENT, ConfigDict(wrong))
    for place in ({"augment": wrong}, {"views": second}):
        name = "augment" if "augment" in place else r"views\.1"
        with pytest.raises(errors.UserError, match=rf"^data\.{name}\.{field}="):
            examples.open_images(data_section(**place), "")


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("field", examples.COLOUR_FIELDS)
def test_only_images_in_colour_take_changes_of_colour(field, channels):
    section = data_section(channels, augment={**defaults.NO_AUGMENT, field: 0.2})
    with pytest.raises(errors.UserError, match=rf"{field}=0.2.*channels={channels}"):
        examples.open_images(section, "")


def test_a_field_that_is_not_given_is_named():
    section = data_section(augment={"flip": True, "min_crop_area": 1.0})
    with pytest.raises(errors.UserError, match=r"data\.augment lacks.*'hue'"):
        examples.open_images(section, "")


@pytest.mark.parametrize("section", [*defaults.MOCO_V3_VIEWS, defaults.NO_AUGMENT])
def test_the_sections_of_the_defaults_are_right(section):
    examples.check_augment("augment", ConfigDict(section), 3)
