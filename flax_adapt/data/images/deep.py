"""Colours of 16 bits, of which Pillow keeps the upper 8 alone.

Pillow unpacks one byte of each level; the unpacker of the other byte order takes the other
byte. So a file that is read twice gives all 16 bits, at the speed of Pillow.
"""

import io
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from flax_adapt.data.images.levels import UndecodableImage

if TYPE_CHECKING:
    from PIL import Image

# How Pillow unpacks a file -> the unpacker that takes the other byte. "N" is this machine's
# order, which is little-endian wherever JAX runs.
_OTHER = {
    f"{mode};16{own}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for own, other in (("B", "L"), ("L", "B"), ("N", "B"))
}


def has_16_bits(image: "Image.Image") -> bool:
    """Returns whether an image, opened and not yet loaded, has colours of 16 bits."""
    wide = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    return wide and not image.mode.startswith("I")


def read_lower(item: bytes | pathlib.Path, formats: tuple[str, ...]) -> "Image.Image":
    """Returns the lower 8 bits of each level, as an image of the mode that Pillow gives.

    Raises UndecodableImage for colours whose lower bits Pillow cannot unpack.
    """
    from PIL import Image

    file = io.BytesIO(item) if isinstance(item, bytes) else item
    with Image.open(file, formats=formats) as image:
        image.tile = [_swap(tile) for tile in image.tile]
        image.load()
        return image.copy()


def _swap(tile: Any) -> Any:
    """Returns a tile of Pillow's that unpacks the other byte."""
    args = tile.args
    mode = args if isinstance(args, str) else args[0]
    if mode not in _OTHER:
        raise UndecodableImage(
            f"16-bit pixels of the kind {mode} cannot be read in full: save them as grey or "
            "RGB, or as a .npy file"
        )
    other = _OTHER[mode]
    return tile._replace(args=other if isinstance(args, str) else (other, *args[1:]))


def join(upper: "Image.Image", lower: "Image.Image") -> np.ndarray:
    """Returns uint16 [Y, X, C] of two images of 8 bits."""
    high, low = (np.asarray(half).astype(np.uint16) for half in (upper, lower))
    return high << 8 | low
