"""What the files of goldens/backbones were made of: sizes and inputs, numpy alone."""

from pathlib import Path

import numpy as np
from inputs import random

FOLDER = Path(__file__).parent / "goldens" / "backbones"
BATCH, NUM_CLASSES, OTHER_SIZE = 2, 3, 20
WIDTH, DEPTH, HEADS, IMAGE_SIZE, PATCH_SIZE = 16, 2, 2, 16, 4


def images(size=IMAGE_SIZE):
    """float32 [B, Y, X, C]."""
    shape = BATCH, size, size, 3
    return random(f"backbones {size}").standard_normal(shape).astype(np.float32)


def weight(shape):
    """float32, of the sum of the states whose gradients are compared."""
    return random("backbones weight").standard_normal(shape).astype(np.float32)
