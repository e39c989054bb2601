"""Layouts of tensors in torch and flax files, and conversion from and to ours.

Our kernels are [in, out], of convolutions [row, column, in, out]. That of the patch embedding
is [P, D], with pixels in (row, column, channel) order. Those of queries, keys and values have
the heads side by side.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.weights.names.names import Style

PATCHES = "encoder/patch_embed/kernel"


def _from_torch(leaf: str, tensor: np.ndarray) -> np.ndarray:
    """Returns ours from torch's [out, in], or [D, channel, row, column] for patches."""
    if leaf == PATCHES and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    if leaf.endswith("/kernel") and tensor.ndim == 2:
        return tensor.T
    return tensor


def _to_torch(leaf: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    if leaf == PATCHES:
        size = config["patch_size"]
        image = array.reshape(size, size, -1, array.shape[-1])
        return image.transpose(3, 2, 0, 1)
    return array.T if leaf.endswith("/kernel") else array


def _from_convolution(leaf: str, tensor: np.ndarray) -> np.ndarray:
    """Returns ours from torch's [out, in], or [out, in, row, column] of a convolution."""
    if leaf.endswith("/kernel") and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return _from_torch(leaf, tensor)


def _to_convolution(
    leaf: str, array: np.ndarray, config: Mapping[str, Any]
) -> np.ndarray:
    return (
        array.transpose(3, 2, 0, 1)
        if array.ndim == 4
        else _to_torch(leaf, array, config)
    )


def _from_flax(leaf: str, tensor: np.ndarray) -> np.ndarray:
    """Returns ours from flax's [row, column, channel, D], or [D, H, K] with axes for heads."""
    layer, _, kind = leaf.rpartition("/")
    if leaf == PATCHES and tensor.ndim == 4:
        return tensor.reshape(-1, tensor.shape[-1])
    if layer.endswith(("/query", "/key", "/value")):
        if tensor.ndim == (3 if kind == "kernel" else 2):
            return tensor.reshape(*tensor.shape[:-2], -1)
    elif leaf.endswith("/attention/out/kernel") and tensor.ndim == 3:
        return tensor.reshape(-1, tensor.shape[-1])
    return tensor


def _to_flax(leaf: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    layer, size, heads = leaf.rpartition("/")[0], config["patch_size"], config["heads"]
    if leaf == PATCHES:
        return array.reshape(size, size, -1, array.shape[-1])
    if layer.endswith(("/query", "/key", "/value")):
        return array.reshape(*array.shape[:-1], heads, -1)
    if leaf.endswith("/attention/out/kernel"):
        return array.reshape(heads, -1, array.shape[-1])
    return array


# "weight" is our "scale" in a norm, our "kernel" in a dense layer. TensorFlow's names of
# a norm are in the oldest files.
TORCH = Style(
    join=".",
    dense={"kernel": ("weight",), "bias": ("bias",)},
    norm={"scale": ("weight", "gamma"), "bias": ("bias", "beta")},
    patch_axes=(2, 3),
    to_ours=_from_torch,
    to_theirs=_to_torch,
)
# torch's layout for ResNets, whose kernels of rank 4 are convolutions, not patches.
CONVOLUTIONS = Style(
    join=".",
    dense={"kernel": ("weight",), "bias": ("bias",)},
    norm={"scale": ("weight",), "bias": ("bias",)},
    patch_axes=(2, 3),
    to_ours=_from_convolution,
    to_theirs=_to_convolution,
)
FLAX = Style(
    join="/",
    dense={"kernel": ("kernel",), "bias": ("bias",)},
    norm={"scale": ("scale",), "bias": ("bias",)},
    patch_axes=(0, 1),
    to_ours=_from_flax,
    to_theirs=_to_flax,
)


def check_square(style: Style, what: str, leaf: str, shape: tuple[int, ...]) -> None:
    """Raises UserError for a patch embedding of patches that are not square.

    After flattening the shape would not show it: 2 x 8 has as many pixels as 4 x 4.
    """
    if leaf == PATCHES and len(shape) == 4:
        rows, columns = (shape[axis] for axis in style.patch_axes)
        if rows != columns:
            raise UserError(f"{what}: patches of {rows} x {columns}: only squares")
