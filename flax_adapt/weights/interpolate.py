"""Matrices [new, old] that resize one axis of a grid, as torch.nn.functional.interpolate does."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# DINOv2's code takes a grid that is larger by this number, against rounding.
OFFSET = 0.1


def bilinear(old: int, new: int) -> np.ndarray:
    """Returns the matrix of mode="bilinear", align_corners=False; float64."""
    return _resize_matrix(_linear, 1, old, new, old / new)


def bicubic(old: int, new: int, offset: float = 0.0) -> np.ndarray:
    """Returns the matrix of mode="bicubic", align_corners=False; float64.

    offset: the scale is that of a grid of new + offset places (scale_factor in torch).
    """
    kernel = functools.partial(_cubic, a=-0.75)  # as PyTorch and OpenCV have it
    return _resize_matrix(kernel, 2, old, new, old / (new + offset))


def antialiased(old: int, new: int) -> np.ndarray:
    """Returns the matrix of mode="bicubic", antialias=True; float64.

    The kernel is that of PIL, a = -0.5. On a coarser grid it is as much wider, and weights
    beyond the edges are left out.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    centre = scale * (np.arange(new) + 0.5)
    place = np.arange(old) + 0.5
    distance = np.abs(place[None] - centre[:, None]) / stretch
    matrix = np.where(distance < 2, _cubic(np.minimum(distance, 2), a=-0.5), 0.0)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _resize_matrix(
    kernel: Callable[[np.ndarray], np.ndarray],
    reach: int,
    old: int,
    new: int,
    scale: float,
) -> np.ndarray:
    """Returns weights of old places by distance, edges repeated; scale: old places a new one."""
    centre = (np.arange(new) + 0.5) * scale - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((new, old))
    for offset in range(1 - reach, reach + 1):
        weight = kernel(np.abs(centre - (first + offset)))
        matrix[np.arange(new), np.clip(first + offset, 0, old - 1)] += weight
    return matrix


def _linear(distance: np.ndarray) -> np.ndarray:
    return 1 - distance


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Returns the cubic kernel of Keys 1981, for distances of at most 2; beyond it is 0."""
    x = distance
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)


class How(NamedTuple):
    """A way to resize positions: for reports, and the matrix of (old, new) sides."""

    text: str
    matrix: Callable[[int, int], np.ndarray]


# The keys of `models.visual.traits.RESIZES`.
HOW = {
    "bicubic": How("bicubic", bicubic),
    "offset": How("bicubic with an offset", functools.partial(bicubic, offset=OFFSET)),
    "antialias": How("bicubic with antialiasing", antialiased),
}
