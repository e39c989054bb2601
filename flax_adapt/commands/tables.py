"""Files that commands write rows to: .csv, .jsonl, .parquet, .npz."""

import contextlib
import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.base.paths import local_path

# Name -> [n], or [n, d]: d columns NAME_0, NAME_1, ... of a csv, lists of the other files.
Columns = Mapping[str, np.ndarray]


def check_target(out: str, endings: tuple[str, ...]) -> Path:
    """Returns the path of a file to write; raises UserError before anything is computed."""
    target = local_path(out)
    if target.suffix not in endings or not target.parent.is_dir():
        kinds = " or ".join(endings)
        raise UserError(
            f"--out={out} must be a new {kinds} file in a folder that exists"
        )
    return target


def write_rows(target: Path, columns: Columns, notes: Columns) -> None:
    """Writes all of a file or nothing; notes: arrays of other lengths, which .npz has alone."""
    partial = target.with_suffix(f".partial{target.suffix}")
    try:
        if target.suffix == ".npz":
            arrays: dict[str, Any] = {**columns, **notes}
            np.savez(partial, **arrays)
        else:
            WRITERS[target.suffix](partial, columns)
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):  # the error of the write is said
            partial.unlink()


def _write_csv(path: Path, columns: Columns) -> None:
    flat: dict[str, list] = {}
    for name, values in columns.items():
        if values.ndim == 1:
            flat[name] = values.tolist()
        else:
            flat |= {
                f"{name}_{i}": values[:, i].tolist() for i in range(values.shape[1])
            }
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(flat)
        writer.writerows(zip(*flat.values(), strict=True))


def _write_jsonl(path: Path, columns: Columns) -> None:
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")


def _write_parquet(path: Path, columns: Columns) -> None:
    import pyarrow
    from pyarrow import parquet

    cells = {
        name: values if values.ndim == 1 else list(values)
        for name, values in columns.items()
    }
    parquet.write_table(pyarrow.table(cells), path)


WRITERS: dict[str, Callable[[Path, Columns], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
