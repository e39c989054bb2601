"""Tables in parquet files and in Arrow files of the package `datasets`, read in parts.

parquet:PATH    a file, or a folder of SPLIT*.parquet or SPLIT/*.parquet
hf:PATH         a folder that `datasets` saved (`save_to_disk`), or one of parquet files
hf:NAME[@REVISION]  the parquet files of a data set on the Hub

Arrow files are mapped, of parquet files the row groups read last are kept in memory: what
is in memory does not grow with the data.
"""

import collections
import functools
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flax_adapt.base import errors, hub
from flax_adapt.base.paths import user_path
from flax_adapt.data import files

if TYPE_CHECKING:
    import pyarrow

_KEPT_BYTES = 256 * 2**20  # of row groups, for every split that is open
_SAVED = "dataset_dict.json"  # what `datasets` writes beside the splits


class Table:
    """The rows of some files, one after the other; safe to read from many threads.

    columns: name -> type. class_names: column -> names of its numbers, where the files tell.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        opened = [_Parquet(p) if p.suffix == ".parquet" else _Arrow(p) for p in paths]
        self._parts = [(file, group) for file in opened for group in range(file.groups)]
        counts = [file.count(group) for file, group in self._parts]
        self._ends = np.cumsum([0, *counts])
        self.columns = {field.name: str(field.type) for field in opened[0].schema}
        for path, file in zip(paths, opened, strict=True):
            if {field.name for field in file.schema} != {*self.columns}:
                raise errors.UserError(
                    f"data.source: {path} has other columns than {paths[0]}: "
                    f"{[field.name for field in file.schema]} and {[*self.columns]}"
                )
        self.class_names = _class_names(opened[0].schema)
        self._kept: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def values(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The values of some columns, row by row; other columns are not read."""
        for file, group in self._parts:
            yield from file.read(group, list(columns)).to_pylist()

    def cell(self, column: str, row: int) -> Any:
        """One value, from its row group."""
        part = int(np.searchsorted(self._ends, row, side="right")) - 1
        inside = int(row - self._ends[part])
        return self._group(part, column).column(column)[inside].as_py()

    def _group(self, part: int, column: str) -> "pyarrow.Table":
        with self._lock:
            if part in self._kept:
                self._kept.move_to_end(part)
                return self._kept[part]
            file, group = self._parts[part]
            self._kept[part] = file.read(group, [column])
            while len(self._kept) > 1 and _size(self._kept) > _KEPT_BYTES:
                self._kept.popitem(last=False)
            return self._kept[part]


def _size(kept: Any) -> int:
    return sum(table.nbytes for table in kept.values())


class _Parquet:
    """A parquet file, by row groups."""

    def __init__(self, path: Path):
        from pyarrow import parquet

        with _readable(path):
            self._file = parquet.ParquetFile(path)
        self._path, self.schema = path, self._file.schema_arrow
        self.groups = self._file.num_row_groups

    def count(self, group: int) -> int:
        return self._file.metadata.row_group(group).num_rows

    def read(self, group: int, columns: list[str]) -> "pyarrow.Table":
        with _readable(self._path):
            return self._file.read_row_group(group, columns=columns)


class _Arrow:
    """An Arrow file (a stream, as `datasets` writes, or a file), mapped and not read."""

    def __init__(self, path: Path):
        import pyarrow

        with _readable(path):
            mapped = pyarrow.memory_map(str(path))
            try:
                self._table = pyarrow.ipc.open_stream(mapped).read_all()
            except pyarrow.ArrowInvalid:
                self._table = pyarrow.ipc.open_file(mapped).read_all()
        self.schema, self.groups = self._table.schema, 1

    def count(self, group: int) -> int:
        return self._table.num_rows

    def read(self, group: int, columns: list[str]) -> "pyarrow.Table":
        return self._table.select(columns)


class _readable:
    """Turns errors of pyarrow about a damaged file into one line that names it."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import pyarrow

        if isinstance(error, pyarrow.ArrowException | OSError):
            why = " ".join(str(error).split())[:120]
            raise errors.UserError(
                f"data.source: {self._path} is damaged or no table ({why})"
            ) from error


def _class_names(schema: "pyarrow.Schema") -> dict[str, tuple[str, ...]]:
    """Names of classes that `datasets` notes in the schema: ClassLabel columns."""
    noted = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(noted).get("info", {}).get("features", {})
    return {
        column: tuple(feature["names"])
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


class Splits(NamedTuple):
    """The files of every split of a source, the asked one among them."""

    where: str
    files: dict[str, list[Path]]

    def open(self, split: str) -> Table:
        return Table(self.files[split])


def find_splits(scheme: str, path: str, split: str) -> Splits:
    """Returns the files of a source by split; raises UserError where the split is not there."""
    root = user_path(path)
    if not root.exists() and scheme == "hf" and hub.parse_name(path):
        root = _fetch(path)
    if not root.is_dir():
        files.check_file(scheme, path, root)
    found = _saved_splits(root) if (root / _SAVED).is_file() else _named_splits(root)
    if not found:
        raise errors.UserError(
            f"data.source='{scheme}:{path}': there is no .parquet or .arrow file in {root}"
        )
    chosen = {name.lower(): paths for name, paths in found.items()} | found
    if split not in chosen:
        raise errors.UserError(
            f"data.split={split!r}: {scheme}:{path} has no such split; it has"
            f" {sorted(found)}{errors.suggest(split, found)}"
        )
    return Splits(f"{scheme}:{path} {split}", {**found, split: chosen[split]})


@functools.cache
def _fetch(name: str) -> Path:
    """The folder of a data set of the Hub; once for all its splits and stages."""

    def choose(names: Sequence[str]) -> list[str]:
        wanted = hub.match(names, "*.parquet")
        if not wanted:
            raise errors.UserError(
                f"hf:{name} has no parquet files, only {files.list_few(sorted(names))}; a branch "
                f"of them is often hf:{name.partition('@')[0]}@refs/convert/parquet"
            )
        return wanted

    return hub.fetch(name, "dataset", choose).folder


def _saved_splits(root: Path) -> dict[str, list[Path]]:
    names = json.loads((root / _SAVED).read_text("utf-8"))["splits"]
    return {
        name: _without_caches(sorted((root / name).glob("*.arrow"))) for name in names
    }


def _without_caches(paths: list[Path]) -> list[Path]:
    """`datasets` keeps the results of its functions beside the data."""
    return [path for path in paths if not path.name.startswith("cache-")]


def _named_splits(root: Path) -> dict[str, list[Path]]:
    """Splits by the folder of a file, or by how its name begins; else all is "train"."""
    if root.is_file():
        return {"train": [root]}
    found: dict[str, list[Path]] = {}
    paths = [p for p in sorted(root.rglob("*")) if p.suffix in (".parquet", ".arrow")]
    for path in _without_caches(paths):
        inside = path.relative_to(root)
        found.setdefault(split_of(inside), []).append(path)
    return (
        {"train": paths}
        if {*found} == {""}
        else {k or "train": v for k, v in found.items()}
    )


def split_of(path: Path) -> str:
    """The split that a file is of: `train-00000-of-00002.parquet`, `data/test/0.parquet`.

    "" where neither its folders nor its name tell.
    """
    words = [*path.parts[:-1], files.first_word(path.name)]
    named = [word for word in words if word.lower() in files.SPLITS]
    return named[-1] if named else ""
