"""Reads files of numpy.savez without trusting the sizes in their headers.

    with npz_file.open_tensors(path) as tensors:
        array = tensors["Transformer/encoder_norm/scale"].get()

`numpy.load` makes an array as large as a header says, and unpacks all of a member. Here every
size is compared with the file before memory is allocated, and arrays of Python objects are
refused.
"""

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import files
from flax_adapt.weights.files.files import LazyTensor, SmallReads

KIND = ".npz"
SUFFIX = ".npy"
MAX_HEADER, MAX_DIMENSIONS = 1000, 32
# Limits of the unpacked size: zeros pack well, trained weights hardly.
MAX_RATIO, FREE_BYTES, MAX_ARRAYS = 16, 64 << 20, 10_000
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The dtype that numpy.save writes for bfloat16 (big_vision reads it back so).
BFLOAT16 = np.dtype("V2")


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[dict[str, LazyTensor]]:
    """Yields the arrays of a file by name; any fault of the file is a UserError."""
    with contextlib.ExitStack() as stack:
        with files.one_line(path, KIND):
            file = stack.enter_context(files.open_file(path))
            archive = stack.enter_context(zipfile.ZipFile(file))
            tensors: dict[str, LazyTensor] = {}
            for entry in _entries(file, archive):
                name = entry.filename.removesuffix(SUFFIX)
                files.check_name(name)
                if name in tensors:
                    raise UserError(f"has two arrays {name}")
                tensors[name] = _lazy(path, archive, entry, name)
        yield tensors


def _entries(file: SmallReads, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > MAX_ARRAYS:
        raise UserError(f"has {len(entries)} arrays, more than {MAX_ARRAYS}")
    if any(entry.compress_type not in METHODS for entry in entries):
        raise UserError("is packed in a way that numpy.savez never does")
    size = sum(entry.file_size for entry in entries)
    if size > MAX_RATIO * file.length + FREE_BYTES:
        raise UserError(f"has {file.length} bytes and would unpack to {size}")
    return entries


def _lazy(
    path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str
) -> LazyTensor:
    with archive.open(entry) as part:
        shape, fortran, dtype = _header(part, name)
        size = math.prod(shape) * dtype.itemsize
        if part.tell() + size != entry.file_size:
            raise ValueError(f"{name} is not as long as its shape")
    final = files.BFLOAT16 if dtype == BFLOAT16 else dtype

    def read() -> np.ndarray:
        with files.one_line(path, KIND), archive.open(entry) as part:
            _header(part, name)
            values = np.frombuffer(files.read_bytes(part, size), final)
            return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)

    return LazyTensor(f"{path}: {name}", shape, final.name, read)


def _header(part: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns (shape, whether the array is in Fortran order, dtype)."""
    if np.lib.format.read_magic(part) != (1, 0):
        raise UserError(f"{name}: is no plain array of numpy.save")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(part, MAX_HEADER)
    if dtype.hasobject or dtype.fields or dtype.subdtype:
        raise UserError(
            f"{name}: dtype {dtype.name} is no weight; nothing of it was run"
        )
    if len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"{name} has no shape")
    return shape, fortran, dtype
