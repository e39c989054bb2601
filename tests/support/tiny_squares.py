"""Image files that are large enough to be stored decoded, and what is stored of them."""

import io

import numpy as np
from PIL import Image

from flax_adapt.data.images import square_files, squares

SIDE = 64
LIMIT = 2**30


def photo(number):
    """An image file of 12 KB: no two are alike, all have the same size."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE + 8, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "BMP")
    return file.getvalue()


def forget():
    """What is in memory is lost, as in another process."""
    squares._share.cache_clear()
    squares._USED.clear()


def shards(root):
    return sorted(root.glob(f"*/*{square_files.ENDING}"))
