"""Prepared TensorFlow datasets, read from array_record files without TensorFlow."""

import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from flax_adapt import errors
from flax_adapt.data.base import UNLABELLED, Numbered, Source

VERSION = re.compile(r"\d+\.\d+\.\d+")
INFO = "dataset_info.json"


def open_tfds(name: str, config_data: ConfigDict) -> Source:
    """Opens NAME[:config] of the highest version there is; `split` may be a slice."""
    # Imported when asked for: it takes seconds.
    import tensorflow_datasets as tfds

    where = f"tfds:{name} {config_data.split}"
    folder = _find(name, config_data.data_dir)
    builder = tfds.builder_from_directory(folder)
    count = _count(builder.info, config_data.split, where)
    features = dict(builder.info.features.items())
    image = _feature(builder.info, tfds.features.Image, "image")
    label = _feature(builder.info, tfds.features.ClassLabel, "label")
    if image is None:
        kinds = {key: type(value).__name__ for key, value in features.items()}
        raise errors.UserError(
            f"data.source='tfds:{name}' has no one image feature; {folder} has {kinds}"
        )
    # Pillow decodes later, in threads; a second image, such as a mask, never is.
    skip = tfds.decode.SkipDecoding()
    decoders = {
        k: skip for k, v in features.items() if isinstance(v, tfds.features.Image)
    }
    records = _records(builder, config_data.split, decoders, where)

    def read(i: int) -> tuple[bytes, int]:
        record = records[i]
        return record[image], UNLABELLED if label is None else int(record[label])

    def read_labels() -> np.ndarray:
        if label is None:
            return np.full(count, UNLABELLED, np.int32)
        logging.info("%s: reading the labels of %d records", where, count)
        return np.fromiter((read(i)[1] for i in range(count)), np.int32, count)

    return Source(
        where=where,
        names=Numbered(f"{name}/{config_data.split}", count),
        class_names=() if label is None else tuple(features[label].names),
        read=read,
        read_labels=read_labels,
    )


def _find(name: str, data_dir: str) -> epath.Path:
    """The folder of the highest prepared version of NAME[:config]."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    root = epath.Path(data_dir or default).expanduser()
    folder = root / name.replace(":", "/")
    versions = sorted(_versions(folder), key=_version)
    if versions:
        return versions[-1]
    raise errors.UserError(
        f"data.source='tfds:{name}' is not prepared in data.data_dir={str(root)!r};"
        f" there is {sorted(_prepared(root)) or 'nothing'}; prepare it once with"
        f" `pip install 'flax-adapt[build]'` and `tfds build {name.replace(':', '/')}"
        f" --file_format=array_record --data_dir={root}`"
    )


def _versions(folder: epath.Path) -> Iterator[epath.Path]:
    """`folder` itself where the version was named, else the versions in it."""
    if (folder / INFO).exists():
        yield folder
    elif folder.is_dir():
        children = (c for c in folder.iterdir() if VERSION.fullmatch(c.name))
        yield from (child for child in children if (child / INFO).exists())


def _version(folder: epath.Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.name)]


def _prepared(root: epath.Path) -> set[str]:
    """NAME or NAME:config of everything that is there."""
    found = [*root.glob(f"*/*/{INFO}"), *root.glob(f"*/*/*/{INFO}")]
    parts = (file.parent.parent.relative_to(root).parts for file in found)
    return {":".join(part) for part in parts}


def _count(info: Any, split: str, where: str) -> int:
    """Examples of `split`, which may be a slice or a sum."""
    there = {key: value.num_examples for key, value in info.splits.items()}
    try:
        count = info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise errors.UserError(
            f"data.split={split!r}: {where} is not a split or a slice of one;"
            f" there is {there}"
        ) from error
    if count <= 0:
        raise errors.UserError(f"data.split={split!r} is empty; there is {there}")
    return count


def _records(builder: Any, split: str, decoders: dict, where: str) -> Any:
    """Random access to the examples; other formats need TensorFlow."""
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise errors.UserError(
            f"data.source: {where} in {builder.data_dir} is stored as"
            f" {builder.info.file_format.value}, which cannot be read without"
            " TensorFlow; build it again in another data_dir with"
            " download_and_prepare(file_format='array_record')"
        ) from error


def _feature(info: Any, kind: type, usual: str) -> str | None:
    """The feature of this kind: the supervised one, the usual name, or the only one."""
    names = [k for k, v in info.features.items() if isinstance(v, kind)]
    supervised = [key for key in info.supervised_keys or () if key in names]
    best = supervised or [key for key in names if key == usual] or names
    if len(best) > 1:
        logging.warning("which %s to use is not clear: %s", kind.__name__, best)
    return best[0] if len(best) == 1 else None
