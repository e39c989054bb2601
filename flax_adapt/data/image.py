"""Image files to uint8 pixels on the host, uint8 to augmented float32 on the device."""

import io

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from flax_adapt import errors, keys
from flax_adapt.data import base
from flax_adapt.types import Array, Key

# Only formats that hold pixels: Pillow would start other programs for some of the rest.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Numbers of the purposes folded into an example's key; no other purpose may use them.
FLIP, CROP = 7001, 7002
# Of a random resized crop (Szegedy et al. 2015, as in torchvision.RandomResizedCrop).
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10


class UndecodableImage(Exception):
    """Not an image that can be read; the text is the reason."""


def decode(item: base.Image, image_size: int, channels: int) -> np.ndarray:
    """Returns uint8 [S, S, C] of an image file's bytes or path, or of uint8 pixels.

    Turned as EXIF says, made grey, RGB (transparency is dropped) or RGBA, 16 bits become 8,
    then resized to the square without keeping the aspect ratio, bilinear with
    antialiasing, as torchvision's Resize((S, S)) does to a Pillow image.
    """
    try:
        pixels = np.asarray(_open(item, image_size, MODES[channels]))
    except (MemoryError, UndecodableImage):
        raise
    except Exception as error:
        # Damaged files make Pillow's readers raise almost anything.
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
    return pixels.reshape(image_size, image_size, channels)


def _open(item: base.Image, image_size: int, mode: str) -> Image.Image:
    if isinstance(item, np.ndarray):
        return _square(Image.fromarray(np.squeeze(item)), image_size, mode)
    file = io.BytesIO(item) if isinstance(item, bytes) else item
    with Image.open(file, formats=FORMATS) as image:
        image.load()  # before the file is closed, whatever follows
        ImageOps.exif_transpose(image, in_place=True)
        return _square(image, image_size, mode)


def _square(image: Image.Image, image_size: int, mode: str) -> Image.Image:
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


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey 0..65535 to 0..255; Pillow's own conversion would clip at 255."""
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UndecodableImage("grey pixels outside 0..65535 have no known range")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def preprocess(
    image_BYXC: Array, key_B: Key | None, data_config: ConfigDict, train: bool
) -> Array:
    """uint8 [B, S, S, C] to normalised float32; augmented if `train`.

    `key_B` holds one key an example (None will do where nothing is drawn), and what is
    drawn depends on nothing else. `mean` and `std` are of pixels scaled to [0, 1]. For
    use inside jit, where `data_config` and `train` are static.
    """
    mean_C, std_C = channel_values(data_config)
    x_BYXC = image_BYXC.astype(jnp.float32) / 255
    if train and key_B is not None:
        x_BYXC = _augment(x_BYXC, key_B, data_config.augment)
    return (x_BYXC - mean_C[None, None, None]) / std_C[None, None, None]


def _augment(x_BYXC: Array, key_B: Key, config_augment: ConfigDict) -> Array:
    if config_augment.min_crop_area < 1:
        x_BYXC = random_resized_crop(x_BYXC, key_B, config_augment.min_crop_area)
    if config_augment.flip:
        x_BYXC = jax.vmap(dm_pix.random_flip_left_right)(keys.fold(key_B, FLIP), x_BYXC)
    return x_BYXC


def random_resized_crop(x_BYXC: Array, key_B: Key, min_area: float) -> Array:
    """Cuts `min_area`..1 of every image, aspect 3/4..4/3, and resizes it back.

    torchvision's rule, bilinear, on real numbers instead of whole pixels.
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
    """float32 [4]: top, left, height, width of a box inside the image."""
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


def channel_values(data_config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """(mean_C, std_C), float32; a UserError where they do not fit the channels."""
    mean_C = np.asarray(data_config.mean, np.float32)
    std_C = np.asarray(data_config.std, np.float32)
    if not mean_C.shape == std_C.shape == (data_config.channels,) or std_C.min() <= 0:
        raise errors.UserError(
            f"data.mean={data_config.mean} and data.std={data_config.std} must be"
            f" data.channels={data_config.channels} numbers each, std above 0"
        )
    return mean_C, std_C
