"""What the goldens of resizing were computed from: tables, kernels and larger images."""

import inputs
import numpy as np

WIDTH = 4
GRIDS = ((14, 24), (14, 7), (7, 10), (10, 7), (2, 5), (5, 1), (1, 3))
PATCHES = ((16, 32), (16, 8), (4, 6), (6, 4))  # of 3 channels, and of one
SIZES = (12, 24)  # of the images given to the model "A" of 16 x 16 pixels


def table(grid):
    """float32 [1, 1 + L, D]."""
    return inputs.tensor("table", (1, 1 + grid**2, WIDTH), 0)


def kernel(size, channels):
    """float32 [D, C, Y, X], as torch has it."""
    return inputs.tensor("kernel", (WIDTH, channels, size, size), 0)


def images(size):
    """float32 [B, Y, X, C]."""
    shape = (inputs.BATCH, size, size, 3)
    return inputs.random("resized", size).standard_normal(shape).astype(np.float32)
