"""The range of pixel levels that becomes 0..255, and how an image is made square.

8-bit images keep their levels, 16-bit ones are divided by 257. Cameras, microscopes and
scanners store 10, 12 or 14 bits in 16, or numbers of any range: for these the config says
`bits` or `window`.
"""

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors

if TYPE_CHECKING:
    from PIL import Image

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_WINDOW = re.compile(rf"({_NUMBER}):({_NUMBER})", re.IGNORECASE)
_PERCENT = re.compile(rf"({_NUMBER})%:({_NUMBER})%", re.IGNORECASE)
MOST_BITS = 16


class UndecodableImage(Exception):
    """Not an image that can be read; the text is the reason."""


class How(NamedTuple):
    """How images become squares of 8 bits: `fit` of FITS, and the range that is 0..255.

    window: (low, high); None: that of the file's type, or of a DICOM file. draft: JPEG
    files are decoded at a smaller scale, see `image.decode`.
    """

    fit: str
    window: tuple[float, float] | None
    draft: bool


def how_of(config_data: ConfigDict) -> How:
    """Returns fit and window of a data section; raises UserError for what they cannot be."""
    errors.choose("data.fit", config_data.fit, FITS)
    bits, window = config_data.bits, config_data.window
    if bits not in range(MOST_BITS + 1):
        raise errors.UserError(
            f"data.bits={bits} must be 1 to {MOST_BITS}, or 0: all bits of the files"
        )
    if bits and window:
        raise errors.UserError(
            f"data.bits={bits} and data.window={window!r} are two ranges: give one"
        )
    levels = (0, 2**bits - 1) if bits else parse_window(window)
    return How(config_data.fit, levels, config_data.jpeg_draft)


def parse_window(text: str) -> tuple[float, float] | None:
    """Returns (low, high) of "LOW:HIGH", None of ""; raises UserError for other texts."""
    found = _WINDOW.fullmatch(text.replace(" ", ""))
    low, high = map(float, found.groups()) if found else (0.0, 0.0)
    if text and low >= high:
        raise errors.UserError(
            f"data.window={text!r} must be LOW:HIGH, the levels that become black and "
            "white, or LOW%:HIGH%, percentiles of all pixels of the set"
        )
    return (low, high) if text else None


def parse_percentiles(text: str) -> tuple[float, float] | None:
    """Returns (low, high) of "LOW%:HIGH%" in percent; None of another text."""
    found = _PERCENT.fullmatch(text.replace(" ", ""))
    if found is None:
        return None
    low, high = map(float, found.groups())
    if not 0 <= low < high <= 100:
        raise errors.UserError(f"data.window={text!r} must be two rising percentages")
    return low, high


def to_8_bits(pixels: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Returns uint8 of the same shape; raises UndecodableImage where no range is known."""
    if window is not None:
        low, high = window
        # float64: differences of large numbers, such as Hounsfield units with an offset.
        scaled = (pixels.astype(np.float64) - low) * (255 / (high - low))
        if not np.isfinite(scaled).all():
            raise UndecodableImage("pixels are NaN or infinite")
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 1:
        wide = pixels.astype(np.int64)
        if wide.min() >= 0 and wide.max() <= 65535:
            return ((wide + 128) // 257).astype(np.uint8)
    raise UndecodableImage(
        f"{pixels.dtype} pixels from {pixels.min():.6g} to {pixels.max():.6g} have no "
        "known range; give data.window=LOW:HIGH"
    )


def _squash(image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
    from PIL import Image

    return image.resize(size, Image.Resampling.BILINEAR)


def _crop(image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
    from PIL import Image, ImageOps

    return ImageOps.fit(image, size, Image.Resampling.BILINEAR)


def _pad(image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
    from PIL import Image, ImageOps

    return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=0)


# The aspect ratio is lost; or the longer side is cut at both ends; or black is added at
# both ends of the shorter one.
FITS = {"squash": _squash, "crop": _crop, "pad": _pad}


def fit_to_square(image: "Image.Image", size: int, fit: str) -> "Image.Image":
    """Returns the image in size x size, bilinear with antialiasing."""
    return image if image.size == (size, size) else FITS[fit](image, (size, size))
