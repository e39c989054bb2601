"""Reads files of torch.save, zip and legacy, without torch and without running any code.

    with torch_file.open_file(path) as file:
        array = file.get_tensor(file.keys()[0])

A file of a training script may hold several state dicts, such as "state_dict" and
"state_dict_ema"; `open_file` opens one of them (see `torch_objects.choose_state_dict`).

Zip format: NAME/data.pkl, NAME/byteorder, and a storage in each NAME/data/KEY. Legacy format:
pickles of a magic number, a version, facts about the machine, the object, and the keys of its
storages; then the storages, each after the number of its elements.
"""

import contextlib
import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import files, torch_objects
from flax_adapt.weights.files.files import LazyTensor, SmallReads
from flax_adapt.weights.files.torch_objects import StateDict, Storage

ZIP, MAGIC, VERSION = b"PK\x03\x04", 0x1950A86A20F9469CFC6C, 1001
KIND = "torch"
# Largest size of all tensors, in lengths of the file; tied weights are stored once.
MAX_SHARING = 4
BIG_ENDIAN = "was not written on a little-endian machine; save it again on one"

Read = Callable[[Storage], bytearray]
Contents = tuple[dict[str, StateDict], Read]
# As the place of a state dict: the default one, or else the first.
ANY = ""


class TorchFile:
    """The tensors of an open file; each is read on request."""

    def __init__(self, path: Path, tensors: StateDict, read: Read):
        self._path, self._tensors, self._read = path, tensors, read
        self._last: tuple[Storage, bytearray] | None = None

    def keys(self) -> list[str]:
        """Returns the names of the tensors."""
        return list(self._tensors)

    def get_tensor(self, name: str) -> np.ndarray:
        """Returns a tensor as an array, in the dtype of the file."""
        with files.one_line(self._path, KIND):
            tensor = self._tensors[name]
            if tensor.is_whole:
                return tensor.view(self._read(tensor.storage))
            # Neighbours in a file may be views of one storage.
            if self._last is None or self._last[0] != tensor.storage:
                self._last = None  # before the next is read: both may be large
                self._last = tensor.storage, self._read(tensor.storage)
            return tensor.view(self._last[1]).copy()

    def lazy(self, name: str) -> LazyTensor:
        """Returns a tensor with shape and dtype, to be read later."""
        with files.one_line(self._path, KIND):
            files.check_name(name)
        tensor = self._tensors[name]
        return LazyTensor(
            f"{self._path}: {name}",
            tensor.shape,
            tensor.storage.dtype.name,
            lambda: self.get_tensor(name),
        )


@contextlib.contextmanager
def open_file(path: Path, place: str | None = None) -> Iterator[TorchFile]:
    """Yields the tensors of a file; any fault of the file is a UserError.

    place: of the state dict to open, see `state_dicts`. None: the usual one, or the only one;
    several state dicts without a usual one are a UserError. ANY: as None, but then the first.
    """
    with _contents(path) as (file, found, read):
        with files.one_line(path, KIND):
            if place == ANY:
                place = torch_objects.default_place(found) or next(iter(found), None)
            tensors = torch_objects.choose_state_dict(found, place)
            size = sum(tensor.num_bytes for tensor in tensors.values())
            if size > MAX_SHARING * file.length:
                raise UserError(f"has {size} bytes of tensors but is not that long")
        yield TorchFile(path, tensors, read)


@contextlib.contextmanager
def _contents(path: Path) -> Iterator[tuple[SmallReads, dict[str, StateDict], Read]]:
    """Yields (open file, {place: state dict}, function that reads a storage)."""
    with contextlib.ExitStack() as stack:
        with files.one_line(path, KIND):
            file = stack.enter_context(files.open_file(path))
            contents = _open_zip(file) if file.read(4) == ZIP else _open_legacy(file)
            for place in contents[0]:
                files.check_name(place)
        yield file, *contents


def state_dicts(path: Path) -> list[str]:
    """Returns the places of all state dicts of a file; no tensor is read."""
    with _contents(path) as (_, found, _):
        return list(found)


@contextlib.contextmanager
def open_tensors(path: Path, place: str | None) -> Iterator[dict[str, LazyTensor]]:
    """Yields the tensors of a file by name; place: as in `open_file`."""
    with open_file(path, place) as file:
        yield {name: file.lazy(name) for name in file.keys()}  # noqa: SIM118


def _open_zip(file: SmallReads) -> Contents:
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise UserError("is a zip file with two parts of one name")
    roots = [name.split("/")[0] for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError(f"is a zip file with {len(roots)} data.pkl; torch writes one")

    def read(name: str, size: int | None) -> bytearray:
        entry = entries[f"{roots[0]}/{name}"]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(
                f"its part {name!a} is compressed; torch compresses nothing"
            )
        if entry.file_size > file.length or size not in (None, entry.file_size):
            raise UserError(
                f"its part {name!a} has {entry.file_size} bytes, not {size}"
            )
        with archive.open(entry) as part:
            return files.read_bytes(part, entry.file_size)

    if f"{roots[0]}/byteorder" in entries and read("byteorder", None) != b"little":
        raise UserError(BIG_ENDIAN)
    if entries[f"{roots[0]}/data.pkl"].file_size > files.MAX_PART:
        raise UserError("its data.pkl is too long for names and shapes")
    value = torch_objects.load(io.BytesIO(read("data.pkl", None)), {})
    return torch_objects.state_dicts(value), lambda storage: read(
        f"data/{storage.key}", storage.num_bytes
    )


def _open_legacy(file: SmallReads) -> Contents:
    file.seek(0)
    head = io.BytesIO(file.read(files.MAX_PART))
    storages: dict[str, Storage] = {}
    if (torch_objects.load(head, {}), torch_objects.load(head, {})) != (MAGIC, VERSION):
        raise UserError("is no file of torch.save")
    machine = torch_objects.load(head, {})
    if machine["little_endian"] is not True:
        raise UserError(BIG_ENDIAN)
    value = torch_objects.load(head, storages)
    keys = torch_objects.load(head, {})
    places = _places(file, head.tell(), [storages[key] for key in keys])
    if places.keys() != storages.keys():
        raise ValueError("it lacks storages that its tensors need")

    def read(storage: Storage) -> bytearray:
        file.seek(places[storage.key])
        return files.read_bytes(file, storage.num_bytes)

    return torch_objects.state_dicts(value), read


def _places(file: SmallReads, start: int, storages: list[Storage]) -> dict[str, int]:
    """Returns {key: position of the first byte} of the storages; all are within the file."""
    places: dict[str, int] = {}
    for storage in storages:
        file.seek(start)
        if struct.unpack("<q", file.read(8)) != (storage.size,):
            raise ValueError("a storage is not as long as it should be")
        places[storage.key] = start + 8
        start += 8 + storage.num_bytes
        if start > file.length:
            raise EOFError("the file is cut short")
    return places
