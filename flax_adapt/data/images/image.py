"""Decodes image files to uint8 on the host, and normalises pixels on the device."""

import functools
import importlib.util
import io
import pathlib
import struct
import warnings
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.base.types import Array, Key
from flax_adapt.data import base
from flax_adapt.data.images import arrays, augment, deep, levels, metadata, randaugment
from flax_adapt.data.images.levels import UndecodableImage

if TYPE_CHECKING:
    from PIL import Image

# Only formats that hold pixels: Pillow would start other programs for some of the rest.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
ENDINGS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
)
HEIF = "HEIF"  # where the package pillow-heif is installed
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ORIENTATION = 0x0112  # tag of EXIF
# EXIF orientation -> Pillow's transpose that puts the image upright; 1 is upright.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# Broken metadata are ignored, and so are Pillow's warnings about them.
warnings.filterwarnings(
    "ignore", category=UserWarning, module=r"PIL\.(Tiff|Jpeg)ImagePlugin"
)


PLAIN = levels.How("squash", None, draft=False)
# A draft of a JPEG file has at least so many times the pixels of a row that are asked for.
# At 2 the squares of photographs differ by 0.2 of 255 on average and 2 at most, at 1 by 0.6
# and 10 (benchmarks/input.py).
DRAFT_SCALE = 2


def decode(
    item: base.Image, image_size: int, channels: int, how: levels.How = PLAIN
) -> np.ndarray:
    """Returns uint8 [S, S, C] of an image file's bytes or path, or of pixels.

    Turned as EXIF says. Levels become 0..255 by `how.window`, 16 bits without one by their
    whole range. Then it is made grey, RGB (transparency is dropped) or RGBA; an image of
    another number of channels must have `channels` of them. `how.fit` "squash" resizes to
    the square without keeping the aspect ratio, bilinear with antialiasing, as
    torchvision's Resize((S, S)) does to a Pillow image. With `how.draft` a JPEG file whose
    sides are at least 4 S is decoded at 1/2, 1/4 or 1/8 of its size, at least 2 S: about
    three times as fast, but the pixels are not the same. Broken metadata are ignored. Raises
    UndecodableImage where there are no pixels to read.
    """
    try:
        return _read_square(item, image_size, channels, how)
    except (MemoryError, UndecodableImage):
        raise
    except Exception as error:
        # Damaged files make Pillow's readers raise almost anything.
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def _read_square(
    item: base.Image, size: int, channels: int, how: levels.How
) -> np.ndarray:
    """`decode`, with whatever errors readers raise."""
    found = None if _is_picture(item) else _read_array(item)
    if found is not None:
        return _square_of_array(found, size, channels, how)
    assert not isinstance(item, np.ndarray)  # it is an array
    try:
        return _open(item, size, channels, how)
    except OSError:
        # Pillow reads TIFF files of up to four channels. An ending may be wrong.
        found = arrays.read(item) or arrays.read_tiff(item)
        if found is None:
            raise
    return _square_of_array(found, size, channels, how)


def _is_picture(item: base.Image) -> bool:
    """Returns whether a file has an ending of FORMATS: it is not opened to look for arrays."""
    return isinstance(item, pathlib.Path) and item.suffix.lower() in ENDINGS


def _read_array(item: base.Image) -> arrays.Levels | None:
    if isinstance(item, np.ndarray):
        return arrays.Levels(np.squeeze(item), None)
    return arrays.read(item)


def _square_of_array(
    found: arrays.Levels, size: int, channels: int, how: levels.How
) -> np.ndarray:
    from PIL import Image

    pixels = levels.to_8_bits(found.pixels, how.window or found.window)
    if pixels.ndim == 3 and pixels.shape[0] == channels != pixels.shape[-1]:
        pixels = np.moveaxis(pixels, 0, -1)
    own = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if own in MODES and channels in MODES:
        whole = how._replace(window=None)  # these are 8 bits already
        return _square(Image.fromarray(pixels), size, channels, whole)
    if own != channels:
        raise UndecodableImage(f"it has {own} channels, not {channels}")
    planes = (Image.fromarray(pixels[..., c].copy()) for c in range(own))
    squares = (levels.fit_to_square(plane, size, how.fit) for plane in planes)
    return np.stack([np.asarray(square) for square in squares], axis=-1)


def _open(
    item: bytes | pathlib.Path, size: int, channels: int, how: levels.How
) -> np.ndarray:
    try:
        return _open_file(item, size, channels, how)
    except (MemoryError, OSError, SyntaxError, ValueError) as error:
        stripped = _without_metadata(item)
        if stripped is None:
            raise
        try:
            return _open_file(stripped, size, channels, how)
        except Exception:
            # The error about the original file says more.
            raise error from None


def _without_metadata(item: bytes | pathlib.Path) -> bytes | None:
    """Returns the file without metadata, None if it has none or cannot be read."""
    try:
        whole = item if isinstance(item, bytes) else item.read_bytes()
        stripped = metadata.strip(whole)
    except (OSError, IndexError, struct.error):
        return None
    return None if stripped == whole else stripped


def _open_file(
    item: bytes | pathlib.Path, size: int, channels: int, how: levels.How
) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO(item) if isinstance(item, bytes) else item
    with Image.open(file, formats=formats()) as image:
        if how.draft:
            least = DRAFT_SCALE * size
            image.draft(None, (least, least))  # changes nothing but JPEG
        wide = how.window is not None and deep.has_16_bits(image)
        image.load()  # before the file is closed, whatever follows
        turn = _turn(image)
        upright = image.transpose(Image.Transpose[turn]) if turn else image
        if not wide:
            return _square(upright, size, channels, how)
        lower = deep.read_lower(item, formats())
        lower = lower.transpose(Image.Transpose[turn]) if turn else lower
    pixels = deep.join(upright, lower)
    return _square_of_array(arrays.Levels(pixels, None), size, channels, how)


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow reads here, with HEIF where its package is installed."""
    if importlib.util.find_spec("pillow_heif") is None:
        return FORMATS
    importlib.import_module("pillow_heif").register_heif_opener()
    return (*FORMATS, HEIF)


def _turn(image: "Image.Image") -> str | None:
    """Returns the entry of TURNS for the image's EXIF; None if upright or broken."""
    try:
        return TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Broken EXIF raises errors of many kinds, and the pixels are good.
        return None


def _square(
    image: "Image.Image", size: int, channels: int, how: levels.How
) -> np.ndarray:
    """uint8 [S, S, C] of an image in any mode of Pillow."""
    from PIL import Image

    if channels not in MODES:
        own = len(image.getbands())
        raise UndecodableImage(f"it has {own} channels, not {channels}")
    if image.mode.startswith("I") or image.mode == "F" or how.window:
        # Pillow's own conversion of 16 bits would clip at 255.
        wide = image.convert("RGB") if image.mode in ("P", "CMYK", "YCbCr") else image
        image = Image.fromarray(levels.to_8_bits(np.asarray(wide), how.window))
    if "transparency" in image.info and image.mode == "P":
        # Pillow warns when it turns such a palette into RGB at once; same pixels.
        image = image.convert("RGBA")
    mode = MODES[channels]
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.asarray(levels.fit_to_square(image, size, how.fit))
    return pixels.reshape(size, size, channels)


def read_levels(item: base.Image) -> np.ndarray | None:
    """Returns the levels of an image whose range is not certain; None of other images.

    Certain are 8 bits, and files that tell their range. Also None where the image cannot be
    decoded, which is found out when it is.
    """
    from PIL import Image

    try:
        found = _read_array(item)
        if found is not None:
            certain = found.window or found.pixels.dtype in (np.uint8, bool)
            return None if certain else found.pixels
        assert not isinstance(item, np.ndarray)  # it is an array
        file = io.BytesIO(item) if isinstance(item, bytes) else item
        with Image.open(file, formats=formats()) as image:
            if image.mode.startswith("I") or image.mode == "F":
                return np.asarray(image)
            if not deep.has_16_bits(image):
                return None
            image.load()
            return deep.join(image, deep.read_lower(item, formats()))
    except Exception:
        return None


def preprocess(
    image_BYXC: Array,
    key_B: Key | None,
    data_config: ConfigDict,
    config_augment: ConfigDict | None,
) -> Array:
    """Returns float32 [B, S, S, C]: augmented images, normalised by `mean` and `std`.

    image_BYXC: pixels 0..255, uint8, or float32 for mixed images. key_B: one key an example,
    the only randomness of its view; None without augmentation. config_augment: None: no
    augmentation. `mean` and `std` are those of pixels scaled to [0, 1]. For use inside jit:
    both configs are static.
    """
    mean_C, std_C = channel_values(data_config)

    def normalize(x_BYXC: Array) -> Array:
        return (x_BYXC - mean_C[None, None, None]) / std_C[None, None, None]

    x_BYXC = image_BYXC.astype(jnp.float32) / 255
    if config_augment is None:
        return normalize(x_BYXC)
    assert key_B is not None  # augmentation draws from it
    x_BYXC = augment.augment(x_BYXC, key_B, config_augment)
    x_BYXC = randaugment.randaugment_batch(x_BYXC, key_B, config_augment)
    return randaugment.erase_batch(normalize(x_BYXC), key_B, config_augment)


def channel_values(data_config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean_C, std_C), float32; raises UserError if they do not fit `channels`."""
    mean_C = np.asarray(data_config.mean, np.float32)
    std_C = np.asarray(data_config.std, np.float32)
    if not mean_C.shape == std_C.shape == (data_config.channels,) or std_C.min() <= 0:
        raise errors.UserError(
            f"data.mean={data_config.mean} and data.std={data_config.std} must be"
            f" data.channels={data_config.channels} numbers each, std above 0"
        )
    return mean_C, std_C
