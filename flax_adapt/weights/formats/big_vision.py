"""Reads and writes ViTs of big_vision and vision_transformer (AugReg), files of .npz.

Their GELU is flax's default, the tanh form; the eps of their LayerNorm is 1e-6.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.weights import fields, writable
from flax_adapt.weights.files import npz as npz_file
from flax_adapt.weights.files import writing
from flax_adapt.weights.files.files import LazyTensor
from flax_adapt.weights.names import big_vision as big_vision_names
from flax_adapt.weights.names import translate
from flax_adapt.weights.writable import Content

TABLE = big_vision_names.BIG_VISION
SUFFIX, SOURCE = ".npz", "big_vision"
FIXED = dict(
    layer_norm_eps=1e-6,
    gelu="tanh",
    qkv_bias=True,
    last_block=None,
    adaptor=None,
    traits=None,
)
KNOWN = ("gelu", "layer_norm_eps")
POOLING = "cls"
DROPPED = {"mae": ("head", "pooler"), "encoder": ("head",), "classify": ()}
# Prefixes of the parameters in files of training scripts, which hold other arrays, too.
PREFIXES = ("params/", "opt/target/", "optimizer/target/")
STACK = "Transformer/encoderblock/"
Tensors = Mapping[str, LazyTensor]
_shape = functools.partial(translate.shape_of, "plain ViT of big_vision")


def detect(path: Path) -> bool:
    """Whether a path is a .npz file."""
    return path.suffix == SUFFIX and path.is_file()


@contextlib.contextmanager
def _open_tensors(path: Path) -> Iterator[dict[str, LazyTensor]]:
    """Yields the tensors of a file, with the names and shapes of the published files."""
    with npz_file.open_tensors(path) as found:
        tensors: dict[str, LazyTensor] = {}
        whole = functools.lru_cache(maxsize=1)(lambda name: tensors_of[name].read())
        tensors_of = {_without_prefix(name): tensor for name, tensor in found.items()}
        if len(tensors_of) != len(found):
            raise UserError(f"{path}: holds two sets of parameters")
        for name, tensor in tensors_of.items():
            if name.startswith(STACK) and tensor.shape:
                tensors |= _unstack(name, tensor, whole)
            elif name == "pos_embedding" and len(tensor.shape) == 3:
                tensors[big_vision_names.POSITION] = _with_cls(tensor)
            else:
                tensors[name] = tensor
        yield tensors


def _without_prefix(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _unstack(name: str, tensor: LazyTensor, whole: Any) -> dict[str, LazyTensor]:
    """Returns a tensor for each block: big_vision's scan stacks them on the first axis."""
    depth, *shape = tensor.shape
    layer = name.removeprefix(STACK)

    def block(number: int) -> LazyTensor:
        what = f"{tensor.what}[{number}]"
        return LazyTensor(what, tuple(shape), tensor.dtype, lambda: whole(name)[number])

    return {f"{STACK[:-1]}_{n}/{layer}": block(n) for n in range(depth)}


def _with_cls(tensor: LazyTensor) -> LazyTensor:
    """Returns the positions with a row of zeros for CLS: big_vision adds no position to it."""
    _, rows, width = tensor.shape

    def read() -> np.ndarray:
        return np.pad(tensor.read(), ((0, 0), (1, 0), (0, 0)))

    return LazyTensor(tensor.what, (1, rows + 1, width), tensor.dtype, read)


def model_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our model config of a file."""
    with _open_tensors(path) as tensors:
        return _config(path, tensors, known)


def _config(where: Path, tensors: Tensors, known: Mapping[str, Any]) -> dict[str, Any]:
    fields.check_known(where, known, KNOWN)
    translate.check_names(where, TABLE, tensors)
    patch_size, columns, channels, width = _shape(where, tensors, "embedding/kernel", 4)
    if patch_size != columns:
        raise UserError(f"{where}: patches of {patch_size} x {columns}: only squares")
    if "cls" not in tensors:
        raise UserError(
            f"{where}: has no cls token (pool_type='gap'); our models need one"
        )
    rows = _shape(where, tensors, big_vision_names.POSITION, 3)[1]
    grid = math.isqrt(rows - 1)
    if grid**2 != rows - 1:
        raise UserError(f"{where}: {rows} positions, which is not 1 + a square")
    leaf_of = {TABLE.leaf_of(name): name for name in tensors}
    query = leaf_of.get("encoder/block_00/attention/query/kernel", "the first block")
    up = leaf_of.get("encoder/block_00/mlp/up/kernel", "the first MLP")
    blocks = [leaf for leaf in leaf_of if leaf and leaf.endswith("/mlp/up/kernel")]
    config = {
        "kind": "vit",
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": len(blocks),
        "heads": _shape(where, tensors, query, 3)[1],
        "mlp_dim": _shape(where, tensors, up, 2)[1],
        "pooler": "pooler/kernel" in leaf_of,
        "traits": None,
        "decoder": None,
        **FIXED,
        **known,
    }
    fields.check_sizes(str(where), config)
    return config


def pooling(path: Path, known: Mapping[str, Any]) -> str:
    """Returns the only supported pooling of such classifiers."""
    del path, known
    return POOLING


def class_names(path: Path) -> None:
    """Returns None: a file has no names of classes."""
    del path


def pixel_statistics(path: Path) -> tuple[list[float], list[float]]:
    """Returns (mean, std), 0.5 for every channel: these models see images in [-1, 1]."""
    with _open_tensors(path) as tensors:
        channels = _config(path, tensors, {})["channels"]
    return [0.5] * channels, [0.5] * channels


@contextlib.contextmanager
def open_source(
    path: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> Iterator[translate.Opened]:
    """Yields (model config, {leaf: LazyLeaf}, fields of `strict.Report`)."""
    with _open_tensors(path) as tensors:
        config = _config(path, tensors, known)
        fields.check_task(path, config, task)
        table = big_vision_names.names(task)
        leaves, found = translate.to_leaves(table, tensors, DROPPED[task], task)
        stated = {"heads", *known} | ({"pooling"} if pooling != POOLING else set())
        found["assumed"] = fields.assumed_values(config, POOLING, stated, task)
        yield config, leaves, found


def write(path: Path, content: Content) -> None:
    """Writes a .npz file like those of AugReg; raises UserError for what it cannot hold."""
    writable.check_config(path, SOURCE, content, FIXED, kind="vit")
    writable.check_no_extras(path, SOURCE, content)
    writable.check_file(path, SOURCE, SUFFIX)
    writable.check_pooling(path, SOURCE, content, (POOLING,))
    writable.check_no_decoder(path, SOURCE, content)
    tensors = translate.to_tensors(TABLE, content.leaves, content.config, "")
    writing.write_file(path, tensors, writing.save_npz)
