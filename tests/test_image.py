"""Decoding on the host, augmenting on the device."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from flax_adapt import errors, keys
from flax_adapt.data import image

RED, SIZE = (200, 30, 60), 8


def encode(picture: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def picture(mode: str, color) -> Image.Image:
    return Image.new(mode, (SIZE, SIZE), color)


def red_cmyk() -> Image.Image:
    return Image.merge("CMYK", [picture("L", value) for value in (55, 225, 195, 0)])


def red_palette() -> Image.Image:
    pale = picture("P", 0)
    pale.putpalette(RED)
    return pale


ENCODED = {
    "jpeg": (encode(picture("RGB", RED), "JPEG", quality=95), RED),
    "cmyk jpeg": (encode(red_cmyk(), "JPEG", quality=95), RED),
    "grey jpeg": (encode(picture("L", 90), "JPEG", quality=95), (90,) * 3),
    "png": (encode(picture("RGB", RED), "PNG"), RED),
    "rgba png": (encode(picture("RGBA", (*RED, 128)), "PNG"), RED),
    "grey alpha png": (encode(picture("LA", (90, 7)), "PNG"), (90,) * 3),
    "palette png": (encode(red_palette(), "PNG"), RED),
    "transparent palette": (encode(red_palette(), "PNG", transparency=b"\x10"), RED),
    "bilevel png": (encode(picture("1", 1), "PNG"), (255,) * 3),
    "16-bit png": (encode(picture("I;16", 90 * 257), "PNG"), (90,) * 3),
    "16-bit tiff": (encode(picture("I;16", 90 * 257), "TIFF"), (90,) * 3),
    "webp": (encode(picture("RGB", RED), "WEBP", lossless=True), RED),
    "gif": (encode(picture("RGB", RED), "GIF"), RED),
    "bmp": (encode(picture("RGB", RED), "BMP"), RED),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_every_format_decodes_to_its_colour(kind):
    encoded, color = ENCODED[kind]
    pixels = image.decode(encoded, 4, 3)
    assert pixels.shape == (4, 4, 3)
    assert pixels.dtype == np.uint8
    whole = image.decode(encoded, SIZE, 3)  # nothing to resize
    assert whole.shape == (SIZE, SIZE, 3)
    # JPEG stores other colours than it was given, by a little.
    near = 3 if "jpeg" in kind else 0
    np.testing.assert_allclose(pixels, np.broadcast_to(color, (4, 4, 3)), atol=near)


def test_grey_is_the_luma_of_the_colours():
    pixels = image.decode(ENCODED["png"][0], SIZE, 1)
    assert pixels.shape == (SIZE, SIZE, 1)
    np.testing.assert_allclose(pixels, 0.299 * 200 + 0.587 * 30 + 0.114 * 60, atol=1)


def test_an_image_of_the_right_size_is_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    encoded = encode(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(image.decode(encoded, SIZE, 3), pixels)
    np.testing.assert_array_equal(image.decode(pixels, SIZE, 3), pixels)


def test_resizes_to_a_square_without_cropping():
    wide = np.zeros((4, 16), np.uint8)
    wide[:, :8] = 255
    half = image.decode(wide, 4, 1)[..., 0]
    assert np.all(half[:, 0] == 255)
    assert np.all(half[:, -1] == 0)
    # The left half of the wide image is the left half of the square one.
    np.testing.assert_allclose(half.mean(), 127.5, atol=1)


def test_halving_weights_the_pixels_as_a_triangle():
    """Four inputs count for each output: 1/8, 3/8, 3/8, 1/8 (antialiased bilinear)."""
    line = np.zeros((8, 8), np.uint8)
    line[:, 3] = 160
    np.testing.assert_array_equal(image.decode(line, 4, 1)[2, :, 0], [0, 60, 20, 0])


@pytest.mark.parametrize(("mode", "colors"), [("L", (0, 255)), ("I;16", (0, 65535))])
def test_turns_the_image_as_exif_says(mode, colors):
    lying = Image.new(mode, (SIZE, SIZE), colors[0])
    lying.paste(colors[1], (0, 0, SIZE, SIZE // 2))  # the top half is bright
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for display
    upright = image.decode(encode(lying, "PNG", exif=exif), SIZE, 1)[..., 0]
    assert np.all(upright[:, SIZE // 2 :] == 255)
    assert np.all(upright[:, :4] == 0)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
UNDECODABLE = {
    "text": b"this is no image",
    "nothing": b"",
    "half a jpeg": encode(Image.fromarray(NOISE), "JPEG")[:1500],
    "half a png": encode(Image.fromarray(NOISE), "PNG")[:1500],
    # Pillow could, but it also runs other programs for some formats (PostScript).
    "a format not listed": encode(picture("RGB", RED), "PPM"),
    "float tiff": encode(picture("F", 0.5), "TIFF"),
    "32-bit tiff": encode(picture("I", 1 << 20), "TIFF"),
}


@pytest.mark.parametrize("kind", UNDECODABLE)
def test_what_cannot_be_read_is_one_kind_of_error(kind):
    with pytest.raises(image.UndecodableImage):
        image.decode(UNDECODABLE[kind], 4, 3)


def test_a_file_that_is_gone_is_undecodable(tmp_path):
    with pytest.raises(image.UndecodableImage, match="FileNotFoundError"):
        image.decode(tmp_path / "gone.png", 4, 3)


def test_a_decompression_bomb_is_undecodable(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(image.UndecodableImage, match="DecompressionBomb"):
        image.decode(ENCODED["png"][0], 4, 3)


def config(flip: bool = False, min_crop_area: float = 1.0) -> ConfigDict:
    return ConfigDict(
        {
            "channels": 3,
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.4),
            "augment": {"flip": flip, "min_crop_area": min_crop_area},
        }
    )


def pixels_and_keys(count: int) -> tuple[np.ndarray, jax.Array]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    return pixels, keys.example_keys(jax.random.key(0), jnp.arange(count))


def run(pixels, key_B, data_config, train):
    @jax.jit
    def preprocess(image_BYXC, key_B):
        return image.preprocess(image_BYXC, key_B, data_config, train)

    return np.asarray(preprocess(pixels, key_B))


@pytest.mark.parametrize("train", [True, False])
def test_without_augmentation_it_only_normalises(train, strict_dtypes):
    pixels, key_B = pixels_and_keys(5)
    # In evaluation nothing is augmented, whatever the config says.
    data_config = config() if train else config(flip=True, min_crop_area=0.2)
    out = run(pixels, key_B, data_config, train)
    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


def test_flips_about_half_and_the_key_alone_decides():
    pixels, key_B = pixels_and_keys(200)
    out = run(pixels, key_B, config(flip=True), True)
    plain = run(pixels, key_B, config(), True)
    flipped = np.array(
        [np.allclose(a, b[:, ::-1]) for a, b in zip(out, plain, strict=True)]
    )
    kept = np.array([np.allclose(a, b) for a, b in zip(out, plain, strict=True)])
    assert np.all(flipped ^ kept)
    assert 70 < flipped.sum() < 130
    # The same keys in another batch, on other images, flip the same rows.
    other = run(pixels[::-1][:50], key_B[:50], config(flip=True), True)
    np.testing.assert_array_equal(
        [np.allclose(a, b) for a, b in zip(other, plain[::-1][:50], strict=True)],
        kept[:50],
    )


def test_crops_stay_in_the_image_and_keep_the_area():
    boxes = keys.draw(image._draw_box, pixels_and_keys(500)[1], 0.3, 10, 10)
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
    size, key_B = 32, pixels_and_keys(6)[1]
    place = np.arange(size) + 0.5
    ramp = np.stack(np.broadcast_arrays(place[:, None], place[None], 0 * place), -1)
    ramp_BYXC = jnp.asarray(np.broadcast_to(ramp, (6, size, size, 3)), jnp.float32)
    out = np.asarray(image.random_resized_crop(ramp_BYXC, key_B, 0.2))
    boxes = keys.draw(image._draw_box, keys.fold(key_B, image.CROP), 0.2, size, size)
    for crop, (top, left, height, width) in zip(out, np.asarray(boxes), strict=True):
        rows, columns = top + height * place / size, left + width * place / size
        rows, columns = rows.clip(0.5, size - 0.5), columns.clip(0.5, size - 0.5)
        np.testing.assert_allclose(crop[..., 0], rows[:, None] + 0 * crop[..., 0], 1e-4)
        np.testing.assert_allclose(crop[..., 1], columns + 0 * crop[..., 1], 1e-4)


def test_augmentation_does_not_depend_on_the_batch():
    pixels, key_B = pixels_and_keys(6)
    both = config(flip=True, min_crop_area=0.2)
    whole = run(pixels, key_B, both, True)
    halves = [run(pixels[s], key_B[s], both, True) for s in (slice(3), slice(3, 6))]
    np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-6, atol=1e-6)
    assert len({crop.tobytes() for crop in whole}) == 6


@pytest.mark.parametrize(
    "wrong", [{"mean": (0.5,)}, {"std": (1.0, 1.0)}, {"std": (1.0, 0.0, 1.0)}]
)
def test_mean_and_std_must_fit_the_channels(wrong):
    data_config = config()
    data_config.update(wrong)
    with pytest.raises(errors.UserError, match=r"data\.mean.*data\.channels=3"):
        run(*pixels_and_keys(1), data_config, True)
