"""Decodes image files to uint8 on the host, and normalises pixels on the device."""

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
from flax_adapt.data.images import augment, metadata, randaugment

if TYPE_CHECKING:
    from PIL import Image

# Only formats that hold pixels: Pillow would start other programs for some of the rest.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
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


class UndecodableImage(Exception):
    """An image that cannot be decoded; the text is the reason."""


def decode(item: base.Image, image_size: int, channels: int) -> np.ndarray:
    """Returns uint8 [S, S, C] of an image file's bytes or path, or of uint8 pixels.

    The image is turned as EXIF says, and converted to grey, RGB (transparency is dropped) or
    RGBA; 16 bits become 8. It is then resized to the square without keeping the aspect
    ratio, bilinear with antialiasing, as torchvision's Resize((S, S)) of a Pillow image.
    Broken metadata are ignored. Raises UndecodableImage for a file without readable pixels.
    """
    try:
        pixels = np.asarray(_open(item, image_size, MODES[channels]))
    except (MemoryError, UndecodableImage):
        raise
    except Exception as error:
        # Damaged files make Pillow's readers raise almost anything.
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
    return pixels.reshape(image_size, image_size, channels)


def _open(item: base.Image, image_size: int, mode: str) -> "Image.Image":
    from PIL import Image

    if isinstance(item, np.ndarray):
        return _square(Image.fromarray(np.squeeze(item)), image_size, mode)
    try:
        return _open_file(item, image_size, mode)
    except (MemoryError, OSError, SyntaxError, ValueError) as error:
        stripped = _without_metadata(item)
        if stripped is None:
            raise
        try:
            return _open_file(stripped, image_size, mode)
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


def _open_file(item: bytes | pathlib.Path, image_size: int, mode: str) -> "Image.Image":
    from PIL import Image

    file = io.BytesIO(item) if isinstance(item, bytes) else item
    with Image.open(file, formats=FORMATS) as image:
        image.load()  # before the file is closed, whatever follows
        turn = _turn(image)
        upright = image.transpose(Image.Transpose[turn]) if turn else image
        return _square(upright, image_size, mode)


def _turn(image: "Image.Image") -> str | None:
    """Returns the entry of TURNS for the image's EXIF; None if upright or broken."""
    try:
        return TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Broken EXIF raises errors of many kinds, and the pixels are good.
        return None


def _square(image: "Image.Image", image_size: int, mode: str) -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.mode == "F":
        raise UndecodableImage("floating-point pixels have no known range")
    if "transparency" in image.info and image.mode == "P":
        # Pillow warns when it turns such a palette into RGB at once; same pixels.
        image = image.convert("RGBA")
    image = image if image.mode == mode else image.convert(mode)
    size = (image_size, image_size)
    return (
        image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
    )


def _from_16_bits(image: "Image.Image") -> "Image.Image":
    """Returns grey 0..65535 scaled to 0..255; Pillow's conversion would clip at 255."""
    from PIL import Image

    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UndecodableImage("grey pixels outside 0..65535 have no known range")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def highest_of_16_bits(item: base.Image) -> int | None:
    """Returns the highest level, 0..65535, of a 16-bit image; None for 8 bits.

    For colours it is known in steps of 256. None also for an image that cannot be decoded.
    """
    from PIL import Image

    if isinstance(item, np.ndarray):
        return int(item.max()) if item.dtype == np.uint16 else None
    file = io.BytesIO(item) if isinstance(item, bytes) else item
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.mode.startswith("I"):
                return int(np.asarray(image).max())
            if ";16" not in str(image.tile):
                return None
            # Pillow keeps the upper 8 bits of 16-bit colours.
            upper = int(np.asarray(image).max())
            return 256 * upper + 255 if upper else 0
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
