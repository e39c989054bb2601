"""Digests of a set of examples, which a resumed run compares with its data.

Files are compared by name and size, and not by time: a folder that was copied, moved or
unpacked again has other times and the same images. So an image that is edited and keeps
its size in bytes is not seen. Examples in memory or in records are compared by content.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flax_adapt.base.types import Params
from flax_adapt.data.base import Source

# Of a larger set this many examples are digested, evenly spread: a network file system
# takes minutes to tell the sizes of a million files. All names are compared.
MAX_FILES, MAX_CONTENTS = 100_000, 10_000


def of_source(source: Source) -> dict[str, str]:
    """Returns {"names": digest, "sizes" or "contents": digest} of a source's examples."""
    named = {"names": digest(source.names)}
    if not len(source):
        return named
    if isinstance(source.read(0)[0], Path):
        items = (source.read(row)[0] for row in _spread(len(source), MAX_FILES))
        return named | {"sizes": digest(_size(item) for item in items)}
    items = (source.read(row)[0] for row in _spread(len(source), MAX_CONTENTS))
    return named | {"contents": digest(items)}


def of_arrays(names: Sequence[str], arrays: Iterable[np.ndarray]) -> dict[str, str]:
    """Returns {"names": digest, "contents": digest} of examples that are arrays."""
    return {"names": digest(names), "contents": digest(arrays)}


def of_both(one: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    """Returns the fingerprint of two sets together."""
    fields = sorted({*one, *other})
    return {
        field: digest((one.get(field, ""), other.get(field, ""))) for field in fields
    }


def of_params(params: Params, facts: Iterable[Any]) -> str:
    """Returns the digest of parameters and of other facts, of which a result is made."""
    leaves = (np.asarray(leaf) for leaf in jax.tree.leaves(params))
    return digest([digest(leaves), *facts])


def digest(items: Iterable[Any]) -> str:
    """Returns a short digest of texts, numbers, bytes and arrays, in order."""
    whole = hashlib.sha256()
    for item in items:
        found = _bytes(item)
        whole.update(len(found).to_bytes(8, "little") + found)
    return whole.hexdigest()[:16]


def _bytes(item: Any) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, np.ndarray):
        kind = f"{item.dtype.str}{item.shape}"
        return kind.encode() + np.ascontiguousarray(item).tobytes()
    return str(item).encode("utf-8", "surrogateescape")


def _spread(count: int, most: int) -> Iterable[int]:
    if count <= most:
        return range(count)
    return np.linspace(0, count - 1, most).astype(np.int64).tolist()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a broken link, or a missing file: the error comes when it is read
        return -1
