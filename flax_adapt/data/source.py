"""Opens a data source, which one string names.

images
    tfds:NAME[:config]   a prepared TensorFlow dataset in array_record, under `data_dir`
    folder:PATH          image files, PATH/[SPLIT/][CLASS]/...
    csv:PATH, tsv:, jsonl:  a table of paths of images; PATH is a file, or a folder of SPLIT.csv
    parquet:PATH         images or paths in parquet files, by row groups
    hf:PATH, hf:NAME     a folder that `datasets` saved; a data set on the Hub, in parquet
    tar:PATTERN          the tar shards of a WebDataset
    builtin:NAME         a small set that comes with a Python package
texts
    tfds:NAME[:config]   as above
    jsonl:PATH           a JSON object a line; PATH is a file, or a folder of SPLIT.jsonl
    csv:PATH, tsv:PATH   the same with a header line; tsv knows no quotes
    parquet:PATH, hf:PATH, hf:NAME  as above
    text:PATH            a document a line, or a folder of .txt files; no labels
"""

import contextlib
import contextvars
import dataclasses
import operator
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.base.paths import locate
from flax_adapt.data import builtin
from flax_adapt.data.base import Source
from flax_adapt.data.images import folder, shards, tables
from flax_adapt.data.images import prepared as prepared_images
from flax_adapt.data.texts import files as text_files
from flax_adapt.data.texts import prepared as prepared_texts

# (the part after the colon, data section) -> source
Open: TypeAlias = Callable[[str, ConfigDict], Source]
# modality -> scheme -> open
SCHEMES: dict[str, dict[str, Open]] = {
    "image": {
        "tfds": prepared_images.open_tfds_images,
        "folder": folder.open_folder,
        "csv": partial(tables.open_paths, "csv"),
        "tsv": partial(tables.open_paths, "tsv"),
        "jsonl": partial(tables.open_paths, "jsonl"),
        "parquet": partial(tables.open_arrow, "parquet"),
        "hf": partial(tables.open_arrow, "hf"),
        "tar": shards.open_shards,
        "builtin": builtin.open_builtin,
    },
    "text": {
        "tfds": prepared_texts.open_tfds_texts,
        "jsonl": partial(text_files.open_table, "jsonl"),
        "csv": partial(text_files.open_table, "csv"),
        "tsv": partial(text_files.open_table, "tsv"),
        "parquet": partial(text_files.open_arrow, "parquet"),
        "hf": partial(text_files.open_arrow, "hf"),
        "text": text_files.open_text,
    },
}


# Fields that do not change what a section opens, but what is done with its examples.
_OF_EXAMPLES = ("classes", "subset", "augment", "views", "buckets", "layout")
# Schemes of files whose examples are identified by where these lie.
_NESTED = frozenset(("folder", "csv", "tsv", "jsonl", "text"))
# Schemes of tables of paths of images, and of all that reads files of images.
_TABLES = frozenset(("csv", "tsv", "jsonl"))
_OF_FILES = {"folder", *_TABLES}
_kept: contextvars.ContextVar[dict[str, Source] | None] = contextvars.ContextVar(
    "kept", default=None
)


@contextlib.contextmanager
def keep_open() -> Iterator[None]:
    """Within it, sections that name the same source and split share one opened `Source`.

    So a recipe of many stages lists a folder once. An inner context shares with the outer
    one; when that ends, nothing is kept. Sources are read-only, so that sharing is safe.
    """
    if _kept.get() is not None:
        yield
        return
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def open_source(config_data: ConfigDict) -> Source:
    """Returns the source of a data section, before its subset is taken.

    If the section lists `classes`, they are the classes of the source, see `recount`.
    Raises UserError for a source that does not exist or cannot be read.
    """
    kept = _kept.get()
    if kept is None:
        return recount(_open(config_data), tuple(config_data.classes))
    key = repr([(k, v) for k, v in config_data.items() if k not in _OF_EXAMPLES])
    if key not in kept:
        kept[key] = _open(config_data)
    return recount(kept[key], tuple(config_data.classes))


def _open(config_data: ConfigDict) -> Source:
    schemes = errors.choose("data.modality", config_data.modality, SCHEMES)
    scheme, colon, rest = config_data.source.partition(":")
    if not colon or not rest:
        raise errors.UserError(
            f"data.source={config_data.source!r} must be SCHEME:WHAT; the schemes of"
            f" modality {config_data.modality!r} are {sorted(schemes)}"
        )
    opener = errors.choose("the scheme of data.source", scheme, schemes)
    return opener(rest, config_data)


def split_of(typed: str) -> tuple[str, str]:
    """Returns (SOURCE, SPLIT) of a text SOURCE@SPLIT; SPLIT is "" where it names none."""
    what, at, split = typed.rpartition("@")
    named = bool(at) and "/" not in split and ":" in what
    return (what, split) if named else (typed, "")


def locate_source(section: Any) -> tuple[str, str]:
    """Returns the source and data_dir of a data section, with absolute paths.

    Two sections of the same files then have the same result.
    """
    scheme, _, what = section["source"].partition(":")
    what = what if scheme in ("tfds", "builtin") else _absolute_path(what)
    return f"{scheme}:{what}", _absolute_path(section["data_dir"])


def _absolute_path(path: str) -> str:
    return locate(path) if path else ""


def may_share(one: Any, other: Any) -> bool:
    """Returns whether two data sections may read the same examples, by what they name.

    `Source.identities` then tell which: those of one split, of a set whose splits overlap,
    of a folder or file in the other one's folder, and images, any of which a table may list.
    """
    if one["modality"] != other["modality"]:
        return False
    (first, first_dir), (second, second_dir) = map(locate_source, (one, other))
    schemes = {text.partition(":")[0] for text in (first, second)}
    if one["modality"] == "image" and schemes & _TABLES and schemes <= _OF_FILES:
        return True
    if (first, first_dir) == (second, second_dir):
        splits = one["split"], other["split"]
        return _MAY_OVERLAP.get(first.partition(":")[0], operator.eq)(*splits)
    # The schemes are the same where one place is in the other.
    nested = f"{first}/".startswith(f"{second}/") or f"{second}/".startswith(
        f"{first}/"
    )
    return nested and schemes <= _NESTED


def _read_same_split(one: str, other: str) -> bool:
    """Returns whether two slices or sums of splits of TFDS name the same split."""
    splits = parse_splits(one), parse_splits(other)
    return bool(splits[0] & splits[1]) or "all" in splits[0] | splits[1]


# Scheme -> whether two splits of a set may overlap; of other schemes only the same one does.
_MAY_OVERLAP: dict[str, Callable[[str, str], bool]] = {
    "builtin": lambda one, other: True,
    "tfds": _read_same_split,
}


def parse_splits(text: str) -> set[str]:
    """Returns the splits that a text such as `train[:50%]+test` reads."""
    return {re.sub(r"\[.*", "", part).strip() for part in text.split("+")}


def recount(source: Source, classes: tuple[str, ...]) -> Source:
    """Returns the same examples with labels that are indices into `classes`; (): unchanged.

    Labels are translated by their names, so that a number means the same for data sets with
    other classes or another order. Ours: a class may be without examples. Raises UserError
    for a class of the source that `classes` lacks.
    """
    if not classes or classes == source.class_names:
        return source
    missing = [name for name in source.class_names if name not in classes]
    if missing or not source.class_names or len(set(classes)) < len(classes):
        raise errors.UserError(
            f"data.classes={classes} must list every class of {source.where} once; it has "
            f"{source.class_names or 'no classes'}"
        )
    number = np.array([classes.index(name) for name in source.class_names], np.int32)

    def label_of(label: Any) -> Any:
        return np.where(np.asarray(label) < 0, label, number[label]).astype(np.int32)

    def read(i: int) -> tuple[Any, float]:
        item, label = source.read(i)
        return item, int(label_of(label))

    return dataclasses.replace(
        source,
        class_names=classes,
        read=read,
        read_labels=lambda: label_of(source.labels),
    )
