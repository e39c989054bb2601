"""Files of decoded squares: what names a square, and how array_record files hold them."""

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt.data import base, fingerprint

log = logging.getLogger(__name__)

ENDING, UNFINISHED = ".array_record", ".unfinished"
KEY_BYTES = 16
# A smaller file is decoded about as fast as its square is read.
LEAST_BYTES = 8192
_STALE_SECONDS = 24 * 3600
# Packages that make pixels of files.
_DECODERS = ("pillow", "pillow-heif", "tifffile", "pydicom", "numpy")


class Shard(NamedTuple):
    """An array_record file: squares, each after its key, and in the last record all keys."""

    path: Path
    reader: Any


def key_of(item: base.Image) -> bytes | None:
    """Returns the key of a file's path or content; None for what is not stored.

    Arrays are decoded already, and tiny files quickly. A file that cannot be read says why
    when it is decoded.
    """
    if isinstance(item, Path):
        try:
            found = item.stat()
        except OSError:
            return None
        facts = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        name = os.path.abspath(item).encode("utf-8", "surrogateescape")
        return _digest(b"path", b"%d %d %d " % facts + name, found.st_size)
    if isinstance(item, bytes):
        return _digest(b"content", item, len(item))
    return None


def _digest(kind: bytes, text: bytes, size: int) -> bytes | None:
    if size < LEAST_BYTES:
        return None
    return hashlib.blake2b(text, digest_size=KEY_BYTES, person=kind).digest()


@functools.cache
def describe_decoders() -> tuple[str, ...]:
    """Returns what else the pixels of a file depend on: versions, and our own source."""
    from PIL import features

    found = [platform.machine(), str(features.version("libjpeg_turbo"))]
    for package in _DECODERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return (*found, fingerprint.digest(path.read_bytes() for path in sources))


def open_shard(path: Path) -> tuple[Shard, list[bytes]]:
    """Returns a shard and the keys of its squares, in order; no keys of a damaged one."""
    from array_record.python import array_record_module

    # Records are read one by one, in any order.
    options = "readahead_buffer_size:0"
    shard = Shard(path, array_record_module.ArrayRecordReader(str(path), options))
    try:
        count = shard.reader.num_records() - 1
        text = shard.reader.read([count])[0] if count > 0 else b""
    except (RuntimeError, ValueError, IndexError, OSError):
        count, text = 0, b""
    if count <= 0 or len(text) != count * KEY_BYTES:
        log.warning("cached images are decoded again: %s cannot be read", path)
        return shard, []
    return shard, [text[i : i + KEY_BYTES] for i in range(0, len(text), KEY_BYTES)]


def write_shard(path: Path, keys: list[bytes], squares: Iterable[bytes]) -> None:
    """Writes a shard, whole or not at all.

    Raises OSError or, of array_record, RuntimeError where the disk does not take it.
    """
    from array_record.python import array_record_module

    unfinished = path.with_suffix(UNFINISHED)
    options = "group_size:1,uncompressed"
    try:
        writer = array_record_module.ArrayRecordWriter(str(unfinished), options)
        for key, square in zip(keys, squares, strict=True):
            writer.write(key + square)
        writer.write(b"".join(keys))
        writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def delete_unfinished(folder: Path) -> None:
    """Deletes what processes that were killed long ago were writing."""
    for path in folder.glob(f"*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
