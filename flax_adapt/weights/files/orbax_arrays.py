"""Reads and writes the arrays of an Orbax checkpoint one at a time (see `orbax_folder`)."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from flax_adapt.base.errors import UserError
from flax_adapt.models import batch_stats
from flax_adapt.weights import strict
from flax_adapt.weights.files import files
from flax_adapt.weights.files.files import LazyTensor
from flax_adapt.weights.files.npz import FREE_BYTES, MAX_RATIO
from flax_adapt.weights.names.translate import LazyLeaf

PARAMS, KIND = "params", "checkpoint"
# Part of a checkpoint for state that training carries along, such as running statistics.
EXTRA = "extra"


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of arrays, but for one array at a time.

    Orbax handles all arrays at once: memory then grows with the checkpoint, and each array of
    a damaged one prints a traceback, but for the first that fails.
    """

    _array_metadata_store = None  # else Orbax warns that there is no metadata of arrays

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        return [(await super(_OneByOne, self).metadata([info]))[0] for info in infos]

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Any = None
    ) -> Sequence[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        for value, info, arg in zip(values, infos, args, strict=True):
            for written in await super().serialize([np.asarray(value)], [info], [arg]):
                written.result()
        return []


class _Registry(ocp.type_handlers.TypeHandlerRegistry):
    """Has one handler for leaves of all types: all are arrays."""

    def __init__(self) -> None:
        self._handler = _OneByOne()

    def get(self, ty: Any) -> _OneByOne:
        del ty
        return self._handler

    def has(self, ty: Any) -> bool:
        del ty
        return True


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Returns the handler of checkpoints; it reads both formats, with and without OCDBT.

    It writes a folder for each array: files of OCDBT need memory for all written arrays.
    """
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=_Registry(), use_ocdbt=False
    )


def open_tensors(state: Path) -> dict[str, LazyTensor]:
    """Returns {leaf: LazyTensor}; any fault of the folder is a UserError."""
    with files.one_line(state, KIND):
        tensors = {}
        for place, found in _weights(_handler().metadata(epath.Path(state)).tree):
            leaf = place.partition("/")[2]
            files.check_name(leaf)
            what, shape = f"{state}: {leaf}", tuple(found.shape)
            read = functools.partial(_read, state, place)
            tensors[leaf] = LazyTensor(what, shape, np.dtype(found.dtype).name, read)
        _check_size(state, tensors)
    return tensors


def _weights(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (place, metadata) of the parameters and running statistics of a checkpoint."""
    for leaf, found in strict.flatten(tree[PARAMS]).items():
        yield f"{PARAMS}/{leaf}", found
    for leaf, found in strict.flatten(tree.get(EXTRA, {})).items():
        if leaf.startswith(f"{batch_stats.NAME}/"):
            yield f"{EXTRA}/{leaf}", found


def _check_size(state: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Raises UserError for shapes that are far larger than the files of the checkpoint."""
    length = sum(file.stat().st_size for file in state.rglob("*") if file.is_file())
    size = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
    if size > MAX_RATIO * length + FREE_BYTES:
        raise UserError(f"has {length} bytes and would unpack to {size}")


def _read(state: Path, place: str) -> np.ndarray:
    """Returns one array. Orbax needs a tree with its place; it ignores the value there."""
    with files.one_line(state, KIND):
        item = strict.unflatten({place: np.empty(0)})
        what = ocp.args.PyTreeRestore(item, partial_restore=True)
        tree = _handler().restore(epath.Path(state), args=what)
        return strict.flatten(tree)[place]


def write(state: Path, leaves: Mapping[str, Any]) -> None:
    """Writes parameters as float32 into a new folder."""

    def lazy(value: Any) -> LazyLeaf:
        return LazyLeaf(tuple(value.shape), lambda: np.asarray(value, np.float32))

    tree = {PARAMS: strict.unflatten({k: lazy(leaf) for k, leaf in leaves.items()})}
    state.mkdir()
    _handler().save(epath.Path(state), args=ocp.args.PyTreeSave(tree))
