"""Decoded squares on disk, which later epochs, stages and runs read instead of decoding.

They lie in `flax_adapt/images` in the user's cache folder, in array_record files ("shards")
that are written whole, so that several processes share them. A square is found by its file
(path, size and times) or, where the source holds the files themselves, by their content;
and by every setting and program that makes its pixels. So pixels are the same with and
without the cache, in whatever order examples are asked for. Augmentation comes later, on
the device.

All shards take no more than `data.cache_bytes`, nor more than the disk has left. Those not
used for the longest time are deleted for new ones, but none that this process uses: what
does not fit is decoded every time. A disk that is full or cannot be written, and a damaged
shard, cost no more than that; the log says so once. A file that was replaced by one of the
same size within a tick of the file system's clock (some milliseconds) is not seen.
"""

import atexit
import contextlib
import functools
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import caches, file_locks
from flax_adapt.data import base, fingerprint
from flax_adapt.data.images import levels, square_files
from flax_adapt.data.images.square_files import ENDING, KEY_BYTES, Shard

log = logging.getLogger(__name__)

# A shard is written when so many bytes are decoded, and they are in memory until then. A
# process that is killed loses them; and every shard is an open file.
SHARD_BYTES, MOST_SHARDS = 64 * 2**20, 256
# What a shard takes beyond its records: blocks of 64 KiB, and headers.
_SPARE_BYTES, _SPARE_SHARE = 2**18, 1.01
# The shards that this process has read or written.
_USED: set[Path] = set()


class Squares:
    """The squares of one size and of the same settings; threads may share it.

    root: the folder of all squares; it is made when the first is stored. settings: the name
    of theirs in it. shape: (S, S, C). limit: bytes of all shards below `root`.
    """

    def __init__(self, root: Path, settings: str, shape: Sequence[int], limit: int):
        self._root, self._folder = root, root / settings
        self._shape, self._limit = tuple(shape), limit
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._fresh: dict[bytes, np.ndarray] = {}  # not written yet
        self._waiting: list[bytes] = []  # keys of the next shard
        self._places: dict[bytes, tuple[Shard, int]] = {}
        self._known: set[Path] = set()
        self._opened = self._stopped = False

    def fetch(self, item: base.Image, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns `decode()`, uint8 [S, S, C], or the same pixels as they were stored.

        item: what is decoded. Raises what `decode` raises; such an item is not stored.
        """
        key = square_files.key_of(item)
        pixels = self._read(key)
        if pixels is None:
            pixels = decode()
            self._add(key, pixels)
        return pixels

    def find(self, item: base.Image) -> np.ndarray | None:
        """Returns the pixels of an item as they were stored, None if they were not."""
        return self._read(square_files.key_of(item))

    def flush(self) -> None:
        """Writes the squares that no shard has yet."""
        self._write(self._take_waiting(0))

    def _open_once(self) -> None:
        if not self._opened:
            with self._write_lock:
                if not self._opened:
                    self._open_shards()
                    self._opened = True

    def _open_shards(self) -> None:
        """Opens the shards that are new in the folder."""
        for path in sorted(self._folder.glob(f"*{ENDING}")):
            if path not in self._known:
                self._known.add(path)
                shard, keys = square_files.open_shard(path)
                places = {key: (shard, row) for row, key in enumerate(keys)}
                with self._lock:
                    self._places |= places

    def _read(self, key: bytes | None) -> np.ndarray | None:
        if key is None:
            return None
        self._open_once()
        with self._lock:
            pixels, place = self._fresh.get(key), self._places.get(key)
        if pixels is not None or place is None:
            return pixels
        shard, row = place
        try:
            (record,) = shard.reader.read([row])
            if record[:KEY_BYTES] != key:
                raise ValueError(f"record {row} is that of another image")
            pixels = np.frombuffer(record, np.uint8, offset=KEY_BYTES)
            pixels = pixels.reshape(self._shape)
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            self._drop(shard, error)
            return None
        if shard.path not in _USED:
            _USED.add(shard.path)
            with contextlib.suppress(OSError):  # another process deleted it
                os.utime(shard.path)
        return pixels

    def _drop(self, shard: Shard, error: Exception) -> None:
        """Deletes a damaged shard; its images are decoded, and stored, again."""
        with self._lock:
            lost = [key for key, place in self._places.items() if place[0] is shard]
            for key in lost:
                del self._places[key]
        if lost:  # else another thread was here
            log.warning("cached images are decoded again: %s: %s", shard.path, error)
            with contextlib.suppress(OSError):
                shard.path.unlink()

    def _add(self, key: bytes | None, pixels: np.ndarray) -> None:
        if key is None:
            return
        with self._lock:
            if self._stopped or key in self._fresh or key in self._places:
                return
            self._fresh[key] = pixels
            self._waiting.append(key)
        self._write(self._take_waiting(max(SHARD_BYTES, self._limit // MOST_SHARDS)))

    def _take_waiting(self, least: int) -> list[bytes]:
        """Returns the keys of the next shard if they are at least so many bytes, else []."""
        with self._lock:
            if len(self._waiting) * self._record_bytes < least:
                return []
            taken, self._waiting = self._waiting, []
            return taken

    @property
    def _record_bytes(self) -> int:
        return KEY_BYTES + int(np.prod(self._shape))

    def _write(self, keys: list[bytes]) -> None:
        """Writes a shard of these squares if it fits; logs why it does not."""
        if not keys:
            return
        with self._write_lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with file_locks.hold(self._root / "lock"):
                    self._write_new(keys)
            except (OSError, RuntimeError) as error:  # RuntimeError: of array_record
                self._stop(str(error))
        with self._lock:
            for key in keys:
                del self._fresh[key]

    def _write_new(self, keys: list[bytes]) -> None:
        """Writes a shard of those squares that no other process wrote meanwhile."""
        self._open_shards()
        keys = [key for key in keys if key not in self._places]
        if self._stopped or not keys:
            return
        square_files.delete_unfinished(self._folder)
        size = int(_SPARE_SHARE * len(keys) * self._record_bytes) + _SPARE_BYTES
        if not self._make_room(size):
            self._stop("no room within data.cache_bytes, or on the disk")
            return
        path = self._folder / f"{uuid.uuid4().hex}{ENDING}"
        square_files.write_shard(path, keys, (self._fresh[k].tobytes() for k in keys))
        _USED.add(path)
        self._open_shards()

    def _make_room(self, size: int) -> bool:
        shards = [*self._root.glob(f"*/*{ENDING}")]
        held = caches.count_bytes(shards)
        free = shutil.disk_usage(self._root).free
        limit = min(self._limit, (held + free) // 2)
        return caches.make_room(shards, size, limit, _USED)

    def _stop(self, reason: str) -> None:
        log.info("no more decoded images are stored in %s: %s", self._root, reason)
        self._stopped = True


def open_squares(config_data: ConfigDict) -> Squares | None:
    """Returns the stored squares of a data section; None where nothing is stored.

    The sections of a process with the same settings share them.
    """
    if not config_data.cache_bytes:
        return None
    shape = (config_data.image_size, config_data.image_size, config_data.channels)
    how = levels.how_of(config_data)
    return _share(caches.user_folder("images"), shape, how, config_data.cache_bytes)


@functools.cache
def _share(root: Path, shape: tuple[int, ...], how: levels.How, limit: int) -> Squares:
    facts = [shape, how, *square_files.describe_decoders()]
    squares = Squares(root, fingerprint.digest(facts), shape, limit)
    atexit.register(squares.flush)
    return squares
