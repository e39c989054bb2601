"""Images that look the same: a difference hash, and the correlation of thumbnails.

The hash is our own: the library `imagehash` needs SciPy and PyWavelets and takes Pillow
images alone, where ours takes whatever `images.image.decode` reads (16 bits, arrays, any
number of channels) and adds these lines. It says which edges of an 8 by 8 picture are
steps up, to the right and down; steps below a fiftieth of the range, which noise turns
over, count as none.
"""

import concurrent.futures
from typing import Any

import numpy as np

from flax_adapt.data.base import Image, Source, count_threads
from flax_adapt.data.images import image, levels

_SIDE, _CELLS = 32, 8
_MARGIN = 1 / 50
# Hashes of 112 bits: near-copies differ in few, unlike photographs in about 40.
_FAR = 16
# The correlation of near-copies (ours): JPEG, another size or brightness keep 0.99 of a
# photograph, and no two of 5 000 MNIST digits have it. Shrunk icons may fall below.
LEAST = 0.99
# Pictures whose levels vary less are one colour: then the levels themselves are compared.
_FLAT, _NEAR_LEVELS = 1.5, 3.0
_AT_ONCE = 2048


def read_pixels(item: Image, section: Any) -> np.ndarray | None:
    """Returns float32 [32, 32], grey levels of an image; None where it cannot be decoded."""
    channels = section.channels if section.channels not in (1, 3, 4) else 1
    how = levels.how_of(section)
    try:
        pixels = image.decode(item, _SIDE, channels, how)
    except image.UndecodableImage:
        return None
    return pixels.astype(np.float32).mean(axis=-1)


def hash_pixels(pixels: np.ndarray) -> np.ndarray:
    """Returns uint64 [2], the difference hash of grey levels float [32, 32]."""
    width = _SIDE // _CELLS
    cells = pixels.reshape(_CELLS, width, _CELLS, width).mean(axis=(1, 3))
    step = _MARGIN * (cells.max() - cells.min())
    right = cells[:, 1:] > cells[:, :-1] + step
    down = cells[1:] > cells[:-1] + step
    bits = np.zeros((2, 64), bool)
    bits[0, : right.size], bits[1, : down.size] = right.ravel(), down.ravel()
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def hash_all(source: Source, section: Any) -> np.ndarray:
    """Returns uint64 [n, 3]: the hash of each image, and 1 where it can be decoded."""
    codes = np.zeros((len(source), 3), np.uint64)

    def hash_row(row: int) -> None:
        pixels = read_pixels(source.read(row)[0], section)
        if pixels is not None:
            codes[row, :2], codes[row, 2] = hash_pixels(pixels), 1

    with concurrent.futures.ThreadPoolExecutor(count_threads(section)) as threads:
        for start in range(0, len(source), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(source)))
            list(threads.map(hash_row, rows))
    return codes


def list_candidates(
    codes_n3: np.ndarray, others_m3: np.ndarray, most: int
) -> list[list[int]]:
    """Returns for each row the `most` rows of the other set with the nearest hashes."""
    known = np.flatnonzero(others_m3[:, 2])
    bank_m2 = others_m3[known, :2]
    found: list[list[int]] = []
    for code in codes_n3:
        rows: list[int] = []
        if code[2] and len(known):
            bits_m = np.bitwise_count(bank_m2 ^ code[:2]).sum(axis=1)
            near = np.flatnonzero(bits_m <= _FAR)
            order = np.argsort(bits_m[near], kind="stable")[:most]
            rows = known[near[order]].tolist()
        found.append(rows)
    return found


def correlate(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the correlation of grey levels [32, 32], at least 0.

    It does not depend on brightness and contrast. Pictures of one colour each: 1 where the
    levels are nearly the same, else 0.
    """
    if min(first.std(), second.std()) < _FLAT:
        is_same = np.abs(first - second).max() <= _NEAR_LEVELS
        return float(is_same)
    x, y = (side.astype(np.float64) - side.mean() for side in (first, second))
    both = np.linalg.norm(x) * np.linalg.norm(y)
    return max(float(np.sum(x * y) / both), 0.0)
