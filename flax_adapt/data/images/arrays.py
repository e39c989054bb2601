"""Image files that hold arrays: .npy, TIFF of any number of channels, DICOM.

The array is [Y, X] or [Y, X, C] of any type; DICOM files say what range is shown.
"""

import io
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.data.images.levels import UndecodableImage

ENDINGS = frozenset((".npy", ".dcm", ".dicom"))
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DICOM_AT = 128


class Levels(NamedTuple):
    """Pixels of any type, [Y, X] or [Y, X, C], and the range that the file itself tells."""

    pixels: np.ndarray
    window: tuple[float, float] | None


def read(item: bytes | pathlib.Path) -> Levels | None:
    """Returns the pixels of a .npy or DICOM file; None of a file of another kind.

    Raises UndecodableImage for a damaged one.
    """
    with _open(item) as file:
        start = file.read(_DICOM_AT + 4)
        file.seek(0)
        if start.startswith(b"\x93NUMPY"):
            return Levels(_check_shape(_read_npy(file)), None)
        if start[_DICOM_AT:] == b"DICM":
            return _read_dicom(file)
    return None


def read_tiff(item: bytes | pathlib.Path) -> Levels | None:
    """Returns the pixels of a TIFF that Pillow cannot read; None of a file of another kind."""
    with _open(item) as file:
        if not file.read(4).startswith(_TIFF):
            return None
        file.seek(0)
        tifffile = _import(
            "tifffile", "TIFF files of more than 4 channels or of doubles"
        )
        return Levels(_check_shape(tifffile.imread(file)), None)


def _open(item: bytes | pathlib.Path) -> Any:
    return io.BytesIO(item) if isinstance(item, bytes) else open(item, "rb")


def _read_npy(file: Any) -> np.ndarray:
    pixels = np.load(file, allow_pickle=False)
    if pixels.dtype.kind not in "biuf":
        raise UndecodableImage(f"an array of {pixels.dtype} is no image")
    return pixels


def _check_shape(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels if pixels.ndim == 2 else np.squeeze(pixels)
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise UndecodableImage(
            f"an array of shape {pixels.shape} is no image [Y, X, C]"
        )
    return pixels


def _read_dicom(file: Any) -> Levels:
    """Pixels after the modality's rescaling, and the first window that the file tells.

    Without one, the range is that of the bits that are stored. MONOCHROME1 is shown
    inverted, so that here, as everywhere, bright is high (DICOM PS3.3 C.7.6.3.1.2).
    """
    pydicom = _import("pydicom", "DICOM files")
    data = pydicom.dcmread(file)
    if int(data.get("NumberOfFrames", 1) or 1) > 1:
        raise UndecodableImage("a DICOM file of several frames is no single image")
    pixels = _check_shape(data.pixel_array)
    slope = float(data.get("RescaleSlope", 1) or 1)
    offset = float(data.get("RescaleIntercept", 0) or 0)
    low, high = _stored_range(data)
    window = (low * slope + offset, high * slope + offset)
    if data.get("WindowCenter") is not None and data.get("WindowWidth") is not None:
        centre, width = _first(data.WindowCenter), _first(data.WindowWidth)
        # The linear function of PS3.3 C.11.2.1.2.1.
        window = (centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)
    if window[0] >= window[1]:
        raise UndecodableImage(f"a window from {window[0]} to {window[1]} is empty")
    if pixels.dtype == np.uint8 and pixels.ndim == 3:
        return Levels(pixels, None)
    scaled = pixels.astype(np.float64) * slope + offset
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        scaled = window[0] + window[1] - scaled
    return Levels(scaled, window)


def _stored_range(data: Any) -> tuple[float, float]:
    bits, signed = int(data.BitsStored), int(data.get("PixelRepresentation", 0))
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _first(value: Any) -> float:
    """A window may have several values, for several purposes."""
    try:
        return float(value)
    except TypeError:
        return float(value[0])


def _import(name: str, what: str) -> Any:
    """Imported when asked for: it comes with the extra `medical`."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UndecodableImage(
            f"{what} need the package {name}: pip install 'flax-adapt[medical]' ({error})"
        ) from error


READERS: tuple[Callable[[Any], Levels | None], ...] = (read, read_tiff)
