"""A data source: named, labelled examples with random access."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from flax_adapt.base.checks import Row

# The bytes of an image file, the path of one, or pixels: uint8 [Y, X] or [Y, X, C].
Image: TypeAlias = bytes | pathlib.Path | np.ndarray
# A document, or the two texts of a pair.
Texts: TypeAlias = tuple[str, ...]
UNLABELLED = -1
# Rules of a data section about its batches, for images and texts.
BATCH_ROWS = (
    Row(
        lambda it: it.prefetch_batches >= 0, "data.prefetch_batches must be at least 0"
    ),
    Row(
        lambda it: 0 <= it.max_bad_fraction <= 1,
        "data.max_bad_fraction must be in [0, 1]",
    ),
)

# Fields of a data section that change no number.
FREE_FIELDS = ("num_threads", "prefetch_batches", "cache_bytes")
MAX_THREADS = 16  # where their number is not given (ours)


def count_threads(config_data: Any) -> int:
    """Returns how many threads decode images: `num_threads`; 0: one for each core.

    More than that take a quarter longer on two cores, since they wait for each other.
    """
    known = hasattr(os, "sched_getaffinity")  # not on a Mac
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return config_data.num_threads or min(cores, MAX_THREADS)


def drop_free(part: Any) -> Any:
    """Returns a plain config without FREE_FIELDS, wherever its data sections are."""
    if isinstance(part, list):
        return [drop_free(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {n: drop_free(one) for n, one in part.items() if n not in FREE_FIELDS}


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to the examples of one split; nothing is decoded here.

    where        source string and split, for messages
    names        the name of every example; may be computed on access
    class_names  the class of label 0, 1, ...; empty where there are no labels
    read(i)      (item, label) of example i; threads may call it at the same time
    read_labels  () -> int32 [n], -1 where there is no label, or float32 [n] where labels
                 are numbers; may be slow: use `labels`
    broken       {name: reason} of the examples that cannot be read and are left out
    identify     () -> what `identities` returns of examples without files of their own, where
                 sources of the same records name them differently; None: names
    """

    where: str
    names: Sequence[str]
    class_names: tuple[str, ...]
    read: Callable[[int], tuple[Any, float]]
    read_labels: Callable[[], np.ndarray]
    broken: Mapping[str, str]
    identify: Callable[[], Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Labels, int32 (-1: none) or float32 [n]. The first use may read every record."""
        return self.read_labels()

    def identities(self) -> Sequence[str]:
        """Returns a name for each example: of a file its path, else `identify`'s or its name.

        A file has the same one in other sources, too; other examples only in sources of the
        same records.
        """
        if self.identify is not None:
            return self.identify()
        if not len(self) or not isinstance(self.read(0)[0], pathlib.Path):
            return self.names
        paths = (self.read(row)[0] for row in range(len(self)))
        real = functools.cache(os.path.realpath)  # of a folder, not of its every file
        return [f"{real(path.parent)}/{path.name}" for path in paths]

    def take(self, rows: np.ndarray) -> "Source":
        """Returns a source of the examples `rows` (int [m]), in this order."""
        identify = self.identify
        return dataclasses.replace(
            self,
            names=SelectedNames(self.names, rows),
            read=lambda i: self.read(int(rows[i])),
            read_labels=lambda: self.labels[rows],
            identify=identify and (lambda: SelectedNames(identify(), rows)),
        )


def join_sources(sources: Sequence[Source]) -> Source:
    """Returns a source of all examples of several sources, one after the other.

    A single source is returned itself. Sources with different classes are joined without
    classes and labels.
    """
    if len(sources) == 1:
        return sources[0]
    ends = np.cumsum([len(source) for source in sources])
    classes = {source.class_names for source in sources}
    is_labelled = len(classes) == 1

    def read(i: int) -> tuple[Any, float]:
        number = source_numbers(ends, i)
        first = ends[number] - len(sources[number])
        item, label = sources[number].read(int(i - first))
        return item, label if is_labelled else UNLABELLED

    def read_labels() -> np.ndarray:
        labels = np.concatenate([source.labels for source in sources])
        return labels if is_labelled else np.full(len(labels), UNLABELLED, np.int32)

    return Source(
        where=" + ".join(source.where for source in sources),
        names=functools.reduce(JoinedNames, [source.names for source in sources]),
        class_names=next(iter(classes)) if is_labelled else (),
        read=read,
        read_labels=read_labels,
        broken={name: why for source in sources for name, why in source.broken.items()},
        identify=lambda: [one for source in sources for one in source.identities()],
    )


def source_numbers(ends: np.ndarray, rows: Any) -> Any:
    """Returns the number of the source that each row of joined sources comes from.

    ends: int [number of sources], the first row after each of them.
    """
    return np.searchsorted(ends, rows, side="right")


class SelectedNames(Sequence[str]):
    """The names of some rows of a set of names."""

    def __init__(self, names: Sequence[str], rows: np.ndarray):
        self._names, self._rows = names, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i):
        rows = self._rows[i]
        if isinstance(i, slice):
            return [self._names[int(row)] for row in rows]
        return self._names[int(rows)]


class JoinedNames(Sequence[str]):
    """The names of two sets, one set after the other."""

    def __init__(self, first: Sequence[str], second: Sequence[str]):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, i):
        row = range(len(self))[i]
        if isinstance(i, slice):
            return [self[r] for r in row]
        here = row - len(self._first)
        return self._second[here] if here >= 0 else self._first[row]


class LineNames(Sequence[str]):
    """Names of the rows of a file: `train.jsonl:17`."""

    def __init__(self, file: str, numbers: np.ndarray):
        self._file, self._numbers = file, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [f"{self._file}:{number}" for number in self._numbers[i]]
        return f"{self._file}:{self._numbers[i]}"


class NumberedNames(Sequence[str]):
    """Names of examples without names of their own: `prefix/000017`."""

    def __init__(self, prefix: str, count: int):
        self._prefix, self._rows = prefix, range(count)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[row] for row in self._rows[i]]
        return f"{self._prefix}/{self._rows[i]:06d}"
