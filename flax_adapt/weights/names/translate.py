"""Converts tensors to leaves and back, by a table of names; all formats use it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.weights import strict
from flax_adapt.weights.files.files import LazyTensor
from flax_adapt.weights.names import layouts
from flax_adapt.weights.names.names import Names, Spare

Leaves = dict[str, np.ndarray]
# (model config, {leaf: LazyLeaf}, fields of `strict.Report`) of a file while it is open.
Opened = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
# Argument of a writer: each call gives the same (name, tensor) pairs again.
Tensors = Callable[[], Iterator[tuple[str, np.ndarray]]]
MAX_NAMED = 3
# transformers writes this tensor of a DINOv3 without registers, too: of shape (1, 0, D).
MAY_BE_EMPTY = "encoder/register_token"


@dataclasses.dataclass(frozen=True, eq=False)
class LazyLeaf:
    """A leaf of a file that is open; `numpy.asarray` reads it, as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    dtype = np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # the array is always new
        return np.asarray(self.read(), dtype)

    def __len__(self) -> int:
        return self.shape[0]


def check_names(where: object, table: Names, names: Collection[str]) -> None:
    """Raises UserError for tensors of features that our models lack; each feature once."""
    found: dict[str, list[str]] = {}
    for name in names:
        if text := table.why_refused(name):
            found.setdefault(text, []).append(name)
    if found:
        kinds = [f"{text} ({named[0]})" for text, named in sorted(found.items())]
        shown = "; ".join(kinds[:MAX_NAMED])
        raise UserError(f"{where}: {shown}: our models cannot do this")


def to_leaves(
    table: Names, tensors: Mapping[str, LazyTensor], dropped: Collection[str], task: str
) -> tuple[dict[str, LazyLeaf], dict[str, Any]]:
    """Returns ({leaf: LazyLeaf}, fields of `strict.Report`).

    dropped: parts of the parameters that `task` does not have; their tensors are ignored. A
    tensor of an unknown name gets a leaf that `adopt` reports as unexpected. Raises UserError
    for two tensors of one leaf.
    """
    leaves: dict[str, LazyLeaf] = {}
    renamed: dict[str, str] = {}
    ignored: dict[str, str] = {}
    converted: dict[str, str] = {}
    # The cache of one tensor: the leaves of a fused tensor are read one after the other.
    get = functools.lru_cache(maxsize=1)(lambda name: tensors[name].get())
    # Spares last: by then it is known whether the leaf's own tensor is present.
    for name in sorted(tensors, key=lambda name: table.spare_of(name) is not None):
        spare = table.spare_of(name)
        leaf = spare.leaf if spare else table.leaf_of(name) or strict.unknown(name)
        part = spare.part if spare and leaf in leaves else leaf.split("/")[0]
        tensor = tensors[name]
        source = tensor.name or name
        if rule := table.why_ignored(name):
            ignored[source] = rule
        elif part in dropped:
            ignored[source] = f"{part} dropped for task {task}"
        elif leaf == MAY_BE_EMPTY and 0 in tensor.shape[:2]:
            ignored[source] = "is empty: the model has no registers"
        else:
            if 0 in tensor.shape:
                raise UserError(f"{tensor.what}: of shape {tensor.shape} it is empty")
            layouts.check_square(table.style, tensor.what, leaf, tensor.shape)
            found = _lazy(table, leaf, tensor.shape, functools.partial(get, name))
            if first := next((part for part in found if part in leaves), None):
                both = found[first], leaves[first]
                ignored[source] = _rule_of_second(tensor.what, spare, first, *both)
            else:
                renamed[source] = ", ".join(found)
                converted |= {source: tensor.dtype} if tensor.dtype != "float32" else {}
                leaves |= found
    return leaves, dict(renamed=renamed, ignored=ignored, converted=converted)


def _lazy(
    table: Names, leaf: str, shape: tuple[int, ...], get: Callable[[], np.ndarray]
) -> dict[str, LazyLeaf]:
    """Returns the leaves of a tensor of that shape, without reading it."""
    nothing = np.broadcast_to(np.float32(0), shape)

    def reader(part: str) -> Callable[[], np.ndarray]:
        return lambda: split(table, leaf, get())[part]

    return {
        part: LazyLeaf(array.shape, reader(part))
        for part, array in split(table, leaf, nothing).items()
    }


def split(table: Names, leaf: str, tensor: np.ndarray) -> Leaves:
    """Returns {leaf: array} of one tensor, in our layout.

    A fused tensor is divided along the last axis; if that does not divide it stays whole.
    """
    array, parts = table.style.to_ours(leaf, tensor), table.parts_of(leaf)
    if not array.ndim or array.shape[-1] % len(parts):
        return {leaf: array}
    return dict(zip(parts, np.split(array, len(parts), axis=-1), strict=True))


def _rule_of_second(
    what: str, spare: Spare | None, leaf: str, array: LazyLeaf, first: LazyLeaf
) -> str:
    """Returns the rule by which a second tensor of a leaf is ignored, or raises UserError."""
    if spare is None:
        raise UserError(f"{what} is {leaf}, but so is another tensor")
    if spare.equal and not np.array_equal(np.asarray(array), np.asarray(first)):
        raise UserError(
            f"{what} is not {spare.rule} ({leaf}): it differs; only a tied decoder can "
            "be built, so load another task or a tied checkpoint"
        )
    return spare.rule


def to_tensors(
    table: Names, leaves: Mapping[str, Any], config: Mapping[str, Any], prefix: str
) -> Tensors:
    """Returns a function that yields every (name, tensor), float32, sorted by name.

    One tensor is in memory at a time. prefix: removed from the names, as in base models.
    config: the model's. Raises UserError for a leaf that the format does not have.
    """
    wholes = dict.fromkeys(_whole_of(table, leaf, leaves) for leaf in leaves)
    names = {table.name_of(whole).removeprefix(prefix): whole for whole in wholes}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, whole in sorted(names.items()):
            parts = [np.asarray(leaves[p], np.float32) for p in table.parts_of(whole)]
            array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            yield name, table.style.to_theirs(whole, array, config)

    return tensors


def _whole_of(table: Names, leaf: str, leaves: Mapping[str, Any]) -> str:
    """Returns the fused leaf that contains `leaf`, or `leaf` where its other parts are absent."""
    whole = table.whole_of(leaf)
    return whole if all(part in leaves for part in table.parts_of(whole)) else leaf


def with_zeros(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Returns a function that yields also tensors of zeros, by {name: shape}."""

    def both() -> Iterator[tuple[str, np.ndarray]]:
        yield from tensors()
        yield from (
            (name, np.zeros(shape, np.float32)) for name, shape in shapes.items()
        )

    return both if shapes else tensors


def shape_of(
    kind: str, where: object, tensors: Mapping[str, LazyTensor], name: str, rank: int
) -> tuple[int, ...]:
    """Returns the shape of a tensor that every file of a kind of model has.

    Raises UserError where it is absent, of another rank or empty.
    """
    if name not in tensors:
        raise UserError(f"{where}: has no {name}, so it is no {kind}")
    shape = tensors[name].shape
    if len(shape) != rank or 0 in shape:
        raise UserError(f"{where}: {name} {shape} must have {rank} axes, none empty")
    return shape
