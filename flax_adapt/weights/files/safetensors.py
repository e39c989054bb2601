"""Reads safetensors files tensor by tensor, without the library of that name.

    with safetensors_file.open_tensors(path) as tensors:
        array = tensors["vit.layernorm.weight"].get()

The library maps the file into memory. All of the file then counts as memory, and if the file
is cut short during reading the process ends (SIGBUS). The library also uses the last of two
tensors of one name, and writes only tensors that are all in memory.

The format (huggingface/safetensors, README): the length of a header, 8 bytes little-endian;
the header, a JSON object {name: {dtype, shape, data_offsets}}; the tensors without gaps. The
offsets [begin, end) count from the end of the header.
"""

import contextlib
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import files
from flax_adapt.weights.files.files import LazyTensor

KIND = "safetensors"
METADATA = "__metadata__"
MAX_DIMENSIONS = 32
DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": "?",
        "U8": "u1",
        "I8": "i1",
        "U16": "<u2",
        "I16": "<i2",
        "U32": "<u4",
        "I32": "<i4",
        "U64": "<u8",
        "I64": "<i8",
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E5M2": jnp.float8_e5m2,
        "F16": "<f2",
        "BF16": jnp.bfloat16,
        "F32": "<f4",
        "F64": "<f8",
        "C64": "<c8",
    }.items()
}


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[dict[str, LazyTensor]]:
    """Yields the tensors of a file by name; any fault of the file is a UserError."""
    with contextlib.ExitStack() as stack:
        with files.one_line(path, KIND):
            file = stack.enter_context(files.open_file(path))
            tensors = _tensors(path, file)
        yield tensors


def _tensors(path: Path, file: files.SmallReads) -> dict[str, LazyTensor]:
    header, start = _header(file)
    tensors, spans = {}, []
    for name, entry in header.items():
        files.check_name(name)
        dtype, shape, begin, end = _entry(name, entry)
        spans.append((begin, end))
        tensors[name] = _lazy(path, file, name, dtype, shape, start + begin)
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise UserError(f"its tensors overlap or leave a gap at byte {begin}")
        place = end
    if start + place != file.length:
        raise EOFError(f"{file.length} bytes, not {start + place}")
    return tensors


def _header(file: files.SmallReads) -> tuple[dict[str, Any], int]:
    """Returns (header without its metadata, position of the first byte of the tensors)."""
    (size,) = struct.unpack("<Q", file.read(8))
    if size > min(files.MAX_PART, file.length - 8):
        raise ValueError(f"a header of {size} bytes")
    text = file.read(size).decode("utf-8")
    header = json.loads(text, object_pairs_hook=_unique)
    if type(header) is not dict or type(header.pop(METADATA, {})) is not dict:
        raise ValueError("a header that is no object")
    return header, 8 + size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UserError("its header has two entries of one name")
    return found


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns (dtype, shape, begin, end) of a tensor, from its entry in the header."""
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} has no dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise UserError(f"{name}: dtype {str(dtype)[:80]!a} is no weight")
    for numbers in (shape, span):
        if type(numbers) is not list or len(numbers) > MAX_DIMENSIONS:
            raise ValueError(f"{name} has no shape and place")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"{name} has no shape and place")
    begin, end = span
    if math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise ValueError(f"{name} is not as long as its shape")
    return DTYPES[dtype], tuple(shape), begin, end


def _lazy(
    path: Path,
    file: files.SmallReads,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    place: int,
) -> LazyTensor:
    def read() -> np.ndarray:
        with files.one_line(path, KIND):
            file.seek(place)
            buffer = files.read_bytes(file, math.prod(shape) * dtype.itemsize)
            return np.frombuffer(buffer, dtype).reshape(shape)

    return LazyTensor(f"{path}: {name}", shape, dtype.name, read)
