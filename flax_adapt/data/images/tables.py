"""Images that a table names or holds.

csv:PATH, tsv:PATH, jsonl:PATH  rows with the path of an image, relative to the table's
    folder, and its class; PATH is a file, or a folder of SPLIT.csv
parquet:PATH, hf:PATH, hf:NAME  rows with an image or its path, see `data.arrow`

`data.image_field` names the column of images ("": the only one of IMAGE_COLUMNS that there
is), `data.label_field` that of the class ("": no labels), `data.split_field` that of the
split: a file without this column is the split "train".
"""

import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.base.paths import user_path
from flax_adapt.base.remote import copies
from flax_adapt.data import arrow, files, records, rows
from flax_adapt.data.base import UNLABELLED, NumberedNames, Source
from flax_adapt.data.texts import files as text_files

IMAGE_COLUMNS = (
    *("image", "img", "images", "path", "image_path", "file", "file_name", "filename"),
    *("filepath", "file_path", "image_file"),
)


class Columns(NamedTuple):
    """The names of the columns that are read; None of one that there is not."""

    image: str
    label: str | None
    split: str | None


class Listed(NamedTuple):
    """Rows of a file, in order: the path of an image, its class ("": none), its split."""

    images: list[str]
    classes: list[str]
    splits: list[str]
    broken: dict[str, str]


def open_paths(scheme: str, path: str, config_data: ConfigDict) -> Source:
    """Opens a table of paths; raises UserError for a column or split that is not there."""
    root, split = user_path(path), config_data.split
    where = f"{scheme}:{path} {split}"
    if root.is_dir():
        found = text_files.split_files(scheme, path, split)
        listed = {
            name: _list_rows(scheme, file, config_data) for name, file in found.items()
        }
        chosen, base = listed[split], found[split].parent
        of_all = [one.classes for one in listed.values()]
    else:
        files.check_file(scheme, path, root)
        whole = _list_rows(scheme, root, config_data)
        chosen, base = _take_split(whole, split, where), root.parent
        of_all = [whole.classes]
    if not chosen.images:
        _explain_nothing(where, chosen.broken)
    copies.fetch_beside(base, chosen.images)
    _check_paths(where, base, chosen.images)
    class_names, labels = number_classes(of_all, chosen.classes)
    names = chosen.images
    return Source(
        where=where,
        names=names,
        class_names=class_names,
        read=lambda i: (base / names[i], int(labels[i])),
        read_labels=lambda: labels,
        broken=chosen.broken,
    )


def open_arrow(scheme: str, path: str, config_data: ConfigDict) -> Source:
    """Opens parquet or Arrow files; images are read when they are asked for."""
    splits = arrow.find_splits(scheme, path, config_data.split)
    tables = {name: splits.open(name) for name in splits.files}
    table = tables[config_data.split]
    columns = _columns_of(table.columns, config_data, splits.where)
    own = _classes(table, columns.label)
    # Read only where the table does not name its classes.
    others = (
        _classes(one, columns.label) for one in tables.values() if one is not table
    )
    class_names, labels = number_classes(
        itertools.chain([own], others), own, table.class_names.get(columns.label or "")
    )
    base = table.paths[0].parent
    names: Sequence[str] = NumberedNames(f"{path}/{config_data.split}", len(table))
    if table.columns[columns.image] in ("string", "large_string"):
        names = [str(row[columns.image]) for row in table.values([columns.image])]
        copies.fetch_beside(base, names)
    return Source(
        where=splits.where,
        names=names,
        class_names=class_names,
        read=lambda i: (_item(table.cell(columns.image, i), base), int(labels[i])),
        read_labels=lambda: labels,
        broken={},
    )


def _item(cell: Any, base: pathlib.Path) -> Any:
    """An image of `datasets` has bytes or a path; others are bytes, a path or numbers."""
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, str):
        return base / cell
    return np.asarray(cell) if isinstance(cell, list) else cell or b""


def _classes(table: arrow.Table, column: str | None) -> list[str]:
    """The class of every row, "" where there is none."""
    if column is None:
        return [""] * len(table)
    names = table.class_names.get(column)
    values = (row[column] for row in table.values([column]))
    if names is None:
        return [class_of(value) for value in values]
    # -1 is how `datasets` writes that there is no label.
    return [names[v] if v is not None and 0 <= v < len(names) else "" for v in values]


def class_of(value: Any) -> str:
    if value is None or not str(value).strip():
        return ""
    return str(records.KINDS["class"](value))


def number_classes(
    of_all: Iterable[Sequence[str]],
    own: Sequence[str],
    class_names: tuple[str, ...] | None = None,
) -> tuple[tuple[str, ...], np.ndarray]:
    """(class names, int32 [n]): a class has one number in all splits; "" is none."""
    if class_names is None:
        class_names = records.order_class_names(
            [[n for n in values if n] for values in of_all]
        )
    number = {name: i for i, name in enumerate(class_names)}
    return class_names, np.array(
        [number.get(name, UNLABELLED) for name in own], np.int32
    )


def _list_rows(scheme: str, file: pathlib.Path, config_data: ConfigDict) -> Listed:
    listed, columns = Listed([], [], [], {}), None
    for line, fields in rows.READERS[scheme](file):
        if isinstance(fields, str):
            listed.broken[f"{file.name}:{line}"] = fields
            continue
        if columns is None:
            columns = _columns_of(fields, config_data, f"{scheme}:{file}")
        try:
            image, label, split = (fields.get(name or "") for name in columns)
            name = class_of(label)
        except records.BrokenRow as error:
            listed.broken[f"{file.name}:{line}"] = str(error)
            continue
        if not isinstance(image, str) or not image.strip():
            listed.broken[f"{file.name}:{line}"] = (
                f"no path of an image in {columns.image!r}"
            )
            continue
        listed.images.append(image.strip())
        listed.classes.append(name)
        listed.splits.append("train" if columns.split is None else str(split).strip())
    return listed


def _columns_of(there: Iterable[str], config_data: ConfigDict, where: str) -> Columns:
    """The columns that a section names; raises UserError for one that is not there."""
    names = list(there)
    usual = [name for name in names if name.lower() in IMAGE_COLUMNS]
    image, label = config_data.image_field, config_data.label_field
    if not image and len(usual) != 1:
        raise errors.UserError(
            f"data.image_field: which column of {where} has the images? It has {names}, of "
            f"which {usual or 'none'} has a usual name: give data.image_field=NAME"
        )
    for field, name in (("image_field", image), ("label_field", label)):
        if name and name not in names:
            without = "; data.label_field='' is without labels" * (
                field == "label_field"
            )
            near = errors.suggest(name, names)
            raise errors.UserError(
                f"data.{field}={name!r} is no column of {where}, which has {names}{without}{near}"
            )
    split = config_data.split_field
    return Columns(image or usual[0], label or None, split if split in names else None)


def _take_split(whole: Listed, split: str, where: str) -> Listed:
    there = dict.fromkeys(whole.splits)
    alike = [name for name in there if name.lower() == split.lower()]
    chosen = split if split in there else alike[0] if alike else None
    if chosen is None and whole.images:
        raise errors.UserError(
            f"data.split={split!r}: {where.rpartition(' ')[0]} has the splits {[*there]}"
            f"{errors.suggest(split, there)}"
        )
    kept = [i for i, name in enumerate(whole.splits) if name == chosen]
    images, classes, splits = ([values[i] for i in kept] for values in whole[:3])
    return Listed(images, classes, splits, whole.broken)


def _check_paths(where: str, base: pathlib.Path, names: Sequence[str]) -> None:
    """Raises UserError where none of the first images is there: another folder is meant."""
    first = names[:10]
    if first and not any((base / name).is_file() for name in first):
        raise errors.UserError(
            f"data.source: {where}: there is no {base / first[0]}; paths are relative to the "
            "folder of the table, or absolute"
        )


def _explain_nothing(where: str, broken: dict[str, str]) -> None:
    if not broken:
        raise errors.UserError(f"data.source: {where} has no row at all")
    name, reason = next(iter(broken.items()))
    raise errors.UserError(
        f"data.source: {where} has no row that can be read; {name}: {reason}"
    )
