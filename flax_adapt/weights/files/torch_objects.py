"""Objects that a pickle of torch may hold: storages, tensors (views of them), containers."""

import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import pickle_data
from flax_adapt.weights.files.pickle_data import Global, Opaque

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "torch.FloatStorage": "<f4",
        "torch.DoubleStorage": "<f8",
        "torch.HalfStorage": "<f2",
        "torch.BFloat16Storage": jnp.bfloat16,
        "torch.LongStorage": "<i8",
        "torch.IntStorage": "<i4",
        "torch.ShortStorage": "<i2",
        "torch.CharStorage": "i1",
        "torch.ByteStorage": "u1",
        "torch.BoolStorage": "?",
        "torch.UntypedStorage": "u1",
        "torch.storage.UntypedStorage": "u1",
    }.items()
}
MAX_DIMENSIONS = 32
# TOP: place of tensors at the top of a file. USUAL: places where training scripts save the
# parameters; the first one that exists is the default.
TOP = "."
USUAL = ("model", "state_dict", TOP)
# The depth to which dicts are searched for state dicts, and the smallest number of tensors
# of a state dict, as a share of the largest one's.
MAX_NESTING, SMALLEST_SHARE = 3, 0.5
MAX_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Storage:
    """A contiguous run of `size` elements in the file, found by `key`."""

    key: str
    dtype: np.dtype
    size: int

    @property
    def num_bytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage. offset, strides: in elements.

    Raises ValueError for a view that reaches outside of its storage.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self):
        if len(self.shape) > MAX_DIMENSIONS or len(self.strides) != len(self.shape):
            raise ValueError(f"a tensor of {len(self.shape)} dimensions")
        numbers = (self.offset, *self.shape, *self.strides)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a tensor of negative or of no size")
        sizes = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((size - 1) * stride for size, stride in sizes)
        # No more elements than the storage: a stride of 0 could repeat one a million times.
        if self.size and (last >= self.storage.size or self.size > self.storage.size):
            raise ValueError("a tensor reaches outside of its storage")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.size * self.storage.dtype.itemsize

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is as large as its storage, so that a view wastes no memory."""
        return self.size == self.storage.size

    def view(self, buffer: bytearray) -> np.ndarray:
        """Returns the tensor as an array, a view of `buffer`, the bytes of its storage."""
        dtype = self.storage.dtype
        if not self.size:
            return np.empty(self.shape, dtype)
        values = np.frombuffer(buffer, dtype, self.storage.size)[self.offset :]
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values, self.shape, strides)


StateDict = dict[str, Tensor]


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *others: Any
) -> Tensor:
    """Replaces torch._utils._rebuild_tensor and _v2; others: gradients and hooks, ignored."""
    if type(storage) is not Storage or type(shape) is not tuple or len(others) > 3:
        raise ValueError("a tensor without a storage or a shape")
    if type(strides) is not tuple:
        raise ValueError("a tensor without strides")
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Tensor:
    del requires_grad, hooks
    if type(tensor) is not Tensor:
        raise ValueError("a parameter without a tensor")
    return tensor


def _size(sizes: Any) -> tuple:
    if type(sizes) is not tuple:
        raise ValueError("a torch.Size of no numbers")
    return sizes


def _ordered_dict(rows: Any = ()) -> dict:
    """Replaces collections.OrderedDict; Python 2 wrote the items as a list of lists."""
    if type(rows) not in (tuple, list):
        raise ValueError("an OrderedDict of no list")
    if any(type(row) not in (tuple, list) or len(row) != 2 for row in rows):
        raise ValueError("an OrderedDict of no pairs")
    return pickle_data.pairs([item for row in rows for item in row])


# Name in a pickle -> the function of ours that is called in its place. Other names are errors.
KNOWN: dict[str, Callable[..., Any] | None] = {
    **dict.fromkeys(DTYPES),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
    "argparse.Namespace": lambda *fields: Opaque(),
}


def load(stream: io.BytesIO, storages: dict[str, Storage]) -> Any:
    """Returns the object of a pickle; adds its storages to `storages`, by key."""

    def persistent(found: Any) -> Storage:
        storage = _storage(found)
        if storages.setdefault(storage.key, storage) != storage:
            raise ValueError("a storage has two types or sizes")
        return storage

    return pickle_data.load(stream, KNOWN, persistent)


def _storage(found: Any) -> Storage:
    """Returns the storage of a persistent id.

    found: ("storage", type, key, device, number of elements[, view: always None]).
    """
    if type(found) is not tuple or len(found) not in (5, 6) or found[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    _, kind, key, _, size, *view = found
    if type(kind) is not Global or kind.name not in DTYPES:
        raise ValueError("a storage without a type")
    if (
        type(key) is not str
        or type(size) is not int
        or size < 0
        or view not in ([], [None])
    ):
        raise ValueError("a storage without key and size, or a view of one")
    return Storage(key, DTYPES[kind.name], size)


def state_dicts(value: Any) -> dict[str, StateDict]:
    """Returns {place: state dict} of the object in a file, with places as "model", "a.b".

    State dicts with less than SMALLEST_SHARE of the tensors of the largest one, such as the
    scale of a loss, are left out, unless they are in a USUAL place.
    """
    found = dict(_find_nested(value, "", set()))
    largest = max(map(len, found.values()), default=0)
    return {
        place: tensors
        for place, tensors in found.items()
        if place in USUAL[:-1] or len(tensors) >= SMALLEST_SHARE * largest
    }


def _find_nested(
    value: Any, place: str, seen: set[int]
) -> Iterator[tuple[str, StateDict]]:
    """Yields (place, state dict) of a dict and of the dicts in it, each of them once."""
    if type(value) is not dict or id(value) in seen or place.count(".") >= MAX_NESTING:
        return
    seen.add(id(value))
    tensors = {name: tensor for name, tensor in value.items() if type(tensor) is Tensor}
    if tensors and all(type(name) is str for name in tensors):
        yield place or TOP, tensors
    for name, inner in value.items():
        if type(name) is str:
            yield from _find_nested(inner, f"{place}.{name}" if place else name, seen)


def choose_state_dict(found: Mapping[str, StateDict], place: str | None) -> StateDict:
    """Returns the state dict of a place; None: of the first USUAL place, or the only one.

    Raises UserError where there is none, or no default among several.
    """
    if not found:
        raise UserError("holds no tensors with names")
    if place is not None and place not in found:
        raise UserError(f"known weights={place}: the file holds {_list_places(found)}")
    default = default_place(found)
    if place is None and default is None:
        raise UserError(
            f"holds several sets of weights: {_list_places(found)}; give one of these names, "
            "known={'weights': NAME}"
        )
    return found[place or default or TOP]


def _list_places(places: Collection[str]) -> str:
    more = len(places) - MAX_LISTED
    listed = ", ".join(itertools.islice(places, MAX_LISTED))
    return f"{listed} and {more} more" if more > 0 else listed


def default_place(found: Collection[str]) -> str | None:
    """Returns the default place; None: there is none, the user must choose one."""
    only = next(iter(found)) if len(found) == 1 else None
    return next((place for place in USUAL if place in found), only)
