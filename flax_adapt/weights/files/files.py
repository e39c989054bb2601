"""Reads files of unknown origin in small parts; every fault is a UserError of one line."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import jax.numpy as jnp
import numpy as np

from flax_adapt.base.errors import UserError

# Largest length of a header, pickle or directory; those of real models are shorter. Parsing
# takes up to 25 times as much memory.
MAX_PART = 16 << 20
CHUNK = 8 << 20
LONGEST_NAME = 300
# Dtypes of weights. Integers are ids and counters; 8-bit floats need scales.
WEIGHTS = ("float16", "bfloat16", "float32", "float64")
# Longest text from a file in an error.
LONGEST_TEXT = 200
BFLOAT16 = np.dtype(jnp.bfloat16)


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor in an open file; `read` returns it in the file's own dtype.

    what: "FILE: NAME", for errors. dtype: NumPy's name, such as "bfloat16". name: its name in
    the file, where the dict that holds it has another key; else "".
    """

    what: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    name: str = ""

    def get(self) -> np.ndarray:
        """Returns the tensor as float32.

        Raises UserError for a dtype that weights do not have, and for NaN or infinities: a
        model with such weights is useless, and a converted copy would have them, too.
        """
        if self.dtype not in WEIGHTS:
            raise UserError(
                f"{self.what}: dtype {self.dtype} is no weight; only "
                f"{', '.join(WEIGHTS)} are"
            )
        array = self.read()
        try:
            with np.errstate(over="raise", invalid="ignore"):
                array = array.astype(np.float32, copy=False)
        except FloatingPointError:
            raise UserError(
                f"{self.what}: has numbers that are too large for float32"
            ) from None
        _check_finite(self.what, array)
        return array


def _check_finite(what: str, array: np.ndarray) -> None:
    """Raises UserError for NaN or infinities; min and max show them without another array."""
    if array.size and not np.isfinite([array.min(), array.max()]).all():
        count = array.size - np.count_nonzero(np.isfinite(array))
        raise UserError(
            f"{what}: {count} of its {array.size} numbers are NaN or infinite; take an "
            "earlier checkpoint, or get the file again; a part that is to be new anyway "
            "can be named in `fresh`"
        )


class SmallReads(io.BufferedReader):
    """A reader with a limit for each read: a wrong length in a file cannot fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = MAX_PART
        if size > MAX_PART:
            raise UserError(f"a part of {size} bytes cannot be right")
        return super().read(size)

    @property
    def length(self) -> int:
        return os.fstat(self.fileno()).st_size


def open_file(path: Path) -> SmallReads:
    """Opens a regular file; raises UserError for pipes and devices, which may never end."""
    if not is_file(path):
        raise UserError("there is no such file")
    return SmallReads(io.FileIO(path))


def is_file(path: Path) -> bool:
    """As `Path.is_file`, but False in place of an error for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def one_line(path: Path, kind: str) -> Iterator[None]:
    """Turns every error into a UserError of one line that begins with the path."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # wrong bytes can raise any error in a parser
        text = f"{type(error).__name__}: {str(error)[:LONGEST_TEXT]!a}"
        raise UserError(
            f"{path}: not a readable {kind} file ({text}); get it again"
        ) from None


def check_name(name: str) -> None:
    """Raises UserError for a tensor's name that is not short, printable text."""
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise UserError(f"{name[:80]!a} is no name of a tensor")


def read_bytes(part: IO[bytes], size: int) -> bytearray:
    """Returns the next `size` bytes; the caller has checked that the file has as many."""
    buffer = bytearray(size)
    rest = memoryview(buffer)
    while rest:
        count = part.readinto(rest[:CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the file is cut short")
        rest = rest[count:]
    return buffer
