"""Decoding on the host, normalising on the device."""

import io
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from flax_adapt import data, defaults
from flax_adapt.base import errors, keys
from flax_adapt.data.images import image

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


def test_only_a_large_jpeg_has_a_draft_which_is_near_its_pixels():
    """Smooth colours: what an antialiased resize keeps of a photograph."""
    ramp = np.linspace(0, 255, 8 * SIZE, dtype=np.float32)
    waves = 128 + 100 * np.sin(ramp[:, None] / 60 + ramp[None] / 90)
    large = Image.fromarray(np.stack([waves] * 3, -1).astype(np.uint8))
    draft = image.PLAIN._replace(draft=True)

    def differences(picture, form):
        file = io.BytesIO()
        picture.save(file, form, quality=95)
        squares = [
            image.decode(file.getvalue(), SIZE, 3, how).astype(int)
            for how in (image.PLAIN, draft)
        ]
        return np.abs(squares[0] - squares[1])

    assert 0 < differences(large, "JPEG").max() < 4
    assert differences(large, "JPEG").mean() < 1
    small = large.resize((4 * SIZE, 4 * SIZE - 1))
    assert not differences(small, "JPEG").any()
    assert not differences(large, "PNG").any()


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


def colour_of_16_bits(levels_YX) -> bytes:
    """A PNG of 16 bits a colour, all three alike; Pillow cannot write it."""
    rows = np.repeat(levels_YX[..., None], 3, axis=2).astype(">u2")
    size = struct.pack(">IIBBBBB", *levels_YX.shape[::-1], 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF", "colour"])
def test_16_bits_that_use_a_fraction_of_their_range_are_refused(tmp_path, form):
    """12 bits of a camera: all of it would be one of 16 levels, nearly black."""
    levels = np.arange(64).reshape(8, 8)

    def open_set(scale):
        for number in range(3):
            pixels = (scale * levels).astype(np.uint16)
            file = tmp_path / f"{number}.{'tiff' if form == 'TIFF' else 'png'}"
            if form == "colour":
                file.write_bytes(colour_of_16_bits(pixels))
            else:
                file.write_bytes(encode(Image.fromarray(pixels), form))
        section = defaults.image_data(
            f"folder:{tmp_path}",
            "train",
            image_size=8,
            channels=1,
            mean=(0.5,),
            std=(0.5,),
        )
        return data.open_examples(ConfigDict(section), "")

    with pytest.raises(errors.UserError) as caught:
        open_set(65)
    assert "the 16-bit images use only 0 to 4095 of 0 to 65535" in str(caught.value)
    assert "give data.bits=12, or data.window=" in str(caught.value)
    whole = open_set(1040)
    (batch,) = data.eval_batches(whole, 3, 0, 1)
    assert batch["image"].max() >= 254
    assert len(open_set(0)) == 3  # what is black stays black on any scale


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_window_of_16_bit_colours_sees_all_16_bits(orientation):
    """Pillow keeps the upper 8 bits, which are 0 to 15 of a camera's 12 bits."""
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 65
    how = image.levels.How("squash", (0, 4095), False)
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = encode(Image.fromarray(levels), "PNG", exif=exif)
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )
    colour = colour_of_16_bits(levels).replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND")
    found = image.decode(colour, 8, 3, how)
    np.testing.assert_array_equal(found, np.repeat(image.decode(grey, 8, 1, how), 3, 2))
    assert len(np.unique(found)) == 64


def test_16_bits_of_a_kind_that_cannot_be_unpacked_are_one_error():
    grey_and_alpha = colour_of_16_bits(np.zeros((4, 12), np.uint16)).replace
    header = struct.pack(">IIBBBBB", 12, 4, 16, 2, 0, 0, 0)
    other = struct.pack(">IIBBBBB", 18, 4, 16, 4, 0, 0, 0)
    crc = [struct.pack(">I", zlib.crc32(b"IHDR" + one)) for one in (header, other)]
    item = grey_and_alpha(header + crc[0], other + crc[1])
    with pytest.raises(image.UndecodableImage, match="save them as grey or RGB"):
        image.decode(item, 4, 3, image.levels.How("squash", (0, 4095), False))


def test_a_file_that_is_gone_is_undecodable(tmp_path):
    with pytest.raises(image.UndecodableImage, match="FileNotFoundError"):
        image.decode(tmp_path / "gone.png", 4, 3)


def test_a_decompression_bomb_is_undecodable(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(image.UndecodableImage, match="DecompressionBomb"):
        image.decode(ENCODED["png"][0], 4, 3)


def config() -> ConfigDict:
    return ConfigDict({"channels": 3, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)})


def preprocess(pixels, data_config=None, **fields):
    """With the fields of a section that is else off; without augmentation for none."""
    section = ConfigDict({**defaults.NO_AUGMENT, **fields}) if fields else None
    key_B = keys.example_keys(jax.random.key(0), jnp.arange(len(pixels)))

    @jax.jit
    def run(image_BYXC, key_B):
        return image.preprocess(image_BYXC, key_B, data_config or config(), section)

    return np.asarray(run(pixels, key_B))


PIXELS = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
NORMALISED = (PIXELS / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]


@pytest.mark.parametrize("off", [{}, {"flip": False}])
def test_without_augmentation_it_only_normalises(off, strict_dtypes):
    out = preprocess(PIXELS, **off)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, NORMALISED, rtol=1e-6, atol=1e-6)


def test_mixed_pixels_are_on_the_same_scale(strict_dtypes):
    halves = PIXELS.astype(np.float32) / 2 + PIXELS[::-1].astype(np.float32) / 2
    wanted = (NORMALISED + NORMALISED[::-1]) / 2
    np.testing.assert_allclose(preprocess(halves), wanted, rtol=1e-5, atol=1e-6)


def test_augments_before_it_normalises():
    out = preprocess(PIXELS, solarize_probability=1.0)
    wanted = np.where(PIXELS < 128, PIXELS, 255 - PIXELS)
    np.testing.assert_allclose(out, preprocess(np.uint8(wanted)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"mean": (0.5,)}, {"std": (1.0, 1.0)}, {"std": (1.0, 0.0, 1.0)}]
)
def test_mean_and_std_must_fit_the_channels(wrong):
    data_config = config()
    data_config.update(wrong)
    with pytest.raises(errors.UserError, match=r"data\.mean.*data\.channels=3"):
        preprocess(PIXELS, data_config)
