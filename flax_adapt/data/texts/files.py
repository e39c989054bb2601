"""Sources of texts in files.

jsonl:PATH, csv:PATH, tsv:PATH  rows with named fields; PATH is a file, which is the
    split "train", or a folder of SPLIT.jsonl (.csv, .tsv)
text:PATH  documents without labels; PATH is a file with one a line, which is the split
    "train", or a folder where every .txt file, at any depth, is one; its splits are
    folders, as of image folders

Broken rows are named FILE:LINE.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.base.paths import user_path
from flax_adapt.data import arrow, files, records, rows
from flax_adapt.data.base import LineNames, Source


def open_table(scheme: str, path: str, config_data: ConfigDict) -> Source:
    """Returns the source of a split; its classes are those of all splits.

    Raises UserError where there is no such file or split, or no readable row.
    """
    where = f"{scheme}:{path} {config_data.split}"
    splits = split_files(scheme, path, config_data.split)
    read = rows.READERS[scheme]
    file = splits[config_data.split]
    gathered, names = _gather_lines(read(file), config_data, where, file)
    classes: tuple[str, ...] = ()
    if config_data.label_field and config_data.label_kind == "class":
        others = [other for other in splits.values() if other != file]
        rows_of_others = ((fields for _, fields in read(other)) for other in others)
        values = (records.read_values(found, config_data) for found in rows_of_others)
        classes = records.order_class_names([gathered.values, *values])
    found = records.make_source(where, names, gathered, config_data, classes)
    return _identify(found, file.parent)


def open_arrow(scheme: str, path: str, config_data: ConfigDict) -> Source:
    """Reads the columns of the split that are asked for, and the labels of the others."""
    splits = arrow.find_splits(scheme, path, config_data.split)
    tables = {name: splits.open(name) for name in splits.files}
    table = tables[config_data.split]
    numbered = enumerate(_arrow_rows(table, config_data))
    prefix = f"{pathlib.PurePath(path).name} {config_data.split}"
    gathered = records.gather_rows(
        numbered, config_data, splits.where, lambda row: f"{prefix}:{row}"
    )
    classes: tuple[str, ...] = ()
    if config_data.label_field and config_data.label_kind == "class":
        others = [one for one in tables.values() if one is not table]
        values = (
            records.read_values(_arrow_rows(one, config_data), config_data)
            for one in others
        )
        known = table.class_names.get(config_data.label_field)
        classes = known or records.order_class_names([gathered.values, *values])
    names = LineNames(prefix, np.array(gathered.keys))
    return records.make_source(splits.where, names, gathered, config_data, classes)


def _arrow_rows(table: arrow.Table, config_data: ConfigDict) -> Iterator[rows.Fields]:
    """Rows of the columns that are read, numbers of classes by their names."""
    label = config_data.label_field
    wanted = [*config_data.text_fields, *([label] if label else [])]
    names = table.class_names.get(label)
    for fields in table.values([name for name in wanted if name in table.columns]):
        if (
            names is not None
            and isinstance(fields.get(label), int)
            and fields[label] >= 0
        ):
            fields[label] = names[fields[label]]
        yield fields


def open_text(path: str, config_data: ConfigDict) -> Source:
    """Returns the source of documents: the lines of a file, or the .txt files of a folder."""
    _check_plain(config_data)
    root = user_path(path)
    where = f"text:{path} {config_data.split}"
    if root.is_dir():
        folder = files.find_split_folders(root, config_data.split)[config_data.split]
        gathered = records.gather_rows(
            _read_documents(root, folder), config_data, where, str
        )
        found = records.make_source(where, gathered.keys, gathered, config_data, ())
        return _identify(found, root)
    _check_one_split("text", path, root, config_data.split)
    gathered, names = _gather_lines(rows.read_text(root), config_data, where, root)
    found = records.make_source(where, names, gathered, config_data, ())
    return _identify(found, root.parent)


def _identify(source: Source, folder: pathlib.Path) -> Source:
    """Returns the source with names below `folder` that have its real path before them.

    So a file of a folder of splits has the rows of the split.
    """

    def identify() -> list[str]:
        real = os.path.realpath(folder)
        return [f"{real}/{name}" for name in source.names]

    return dataclasses.replace(source, identify=identify)


def split_files(scheme: str, path: str, split: str) -> dict[str, pathlib.Path]:
    """Every split there is, the asked one among them."""
    root = user_path(path)
    if not root.is_dir():
        _check_one_split(scheme, path, root, split)
        return {"train": root}
    tables = {
        file.stem: file
        for file in sorted(root.iterdir())
        if files.ending_of(file.name) == f".{scheme}" and not file.name.startswith(".")
    }
    found = _split_tables(tables, split)
    if split not in found:
        there = sorted(tables) or f"no .{scheme} file"
        raise errors.UserError(
            f"data.split={split!r}: there is no {split}.{scheme} in {root};"
            f" it has {there}"
        )
    others = [file.name for file in tables.values() if file not in found.values()]
    if others:
        files.warn_once(f"{root}: not a split, so not read: {files.list_few(others)}")
    return found


def _split_tables(
    tables: dict[str, pathlib.Path], split: str
) -> dict[str, pathlib.Path]:
    """Returns the tables that are splits: `split`, and all like `train`, `Dev`, `train_10`.

    Where no table has such a name, as with `fold1` and `fold2`, all are splits.
    """
    found = {
        name: file
        for name, file in tables.items()
        if files.first_word(name.lower()) in files.SPLITS
    } or tables
    lower = {name.lower(): file for name, file in tables.items()} | tables
    return {**found, split: lower[split]} if split in lower else found


def _check_one_split(scheme: str, path: str, file: pathlib.Path, split: str) -> None:
    files.check_file(scheme, path, file)
    if split != "train":
        raise errors.UserError(
            f"data.split={split!r}: {scheme}:{path} is one file, which is 'train'; name"
            " its folder, or hold some out with data.subset and part='rest'"
        )


def _gather_lines(
    found: rows.Rows, config_data: ConfigDict, where: str, file: pathlib.Path
) -> tuple[records.GatheredRows, LineNames]:
    """Returns the readable rows and their names, FILE:LINE."""
    gathered = records.gather_rows(
        found, config_data, where, lambda line: f"{file.name}:{line}"
    )
    return gathered, LineNames(file.name, np.array(gathered.keys))


def _read_documents(
    root: pathlib.Path, folder: pathlib.Path
) -> Iterator[tuple[str, rows.Fields]]:
    paths, unread = files.list_files(folder, {".txt"})
    if not paths:
        there = f"; there are only {unread}" if unread else ""
        raise errors.UserError(f"data.source: there is no .txt file in {folder}{there}")
    if unread:
        files.warn_once(f"{folder}: not read: {unread}")
    if {path.removesuffix(".txt") for path in paths} <= files.SPLITS:
        raise errors.UserError(
            f"data.source: {folder} holds only {paths}; a file"
            f" with one document a line is named itself: text:{folder / paths[0]}"
        )
    for path in paths:
        name = (folder / path).relative_to(root).as_posix()
        try:
            yield name, {"text": (folder / path).read_text("utf-8-sig")}
        except UnicodeDecodeError:
            yield name, rows.NOT_UTF8


def _check_plain(config_data: ConfigDict) -> None:
    if config_data.label_field or tuple(config_data.text_fields) != ("text",):
        raise errors.UserError(
            "data.source='text:...' has one field, 'text', and no labels: set"
            " data.text_fields=('text',) and data.label_field=''"
        )
