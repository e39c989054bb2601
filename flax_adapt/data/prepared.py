"""Prepared TensorFlow datasets, read from array_record files without TensorFlow."""

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.base.paths import expand_user, user_path
from flax_adapt.base.remote import addresses, store

if TYPE_CHECKING:
    from etils import epath

VERSION = re.compile(r"\d+\.\d+\.\d+")
INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set: its TFDS builder, and the number of examples of a split."""

    where: str
    folder: "epath.Path"
    builder: Any
    count: int

    @property
    def info(self) -> Any:
        return self.builder.info

    @property
    def features(self) -> dict[str, Any]:
        """The TFDS feature of every field."""
        return dict(self.info.features.items())

    def identify(self, split: str) -> list[str]:
        """Returns FILE:ROW of every example of a split, the same in its slices and sums."""
        return [
            f"{os.path.basename(part.filename)}:{row}"
            for part in self.info.splits[split].file_instructions
            for row in range(part.skip, part.skip + part.take)
        ]

    def records(self, split: str, decoders: dict) -> Any:
        """Returns random access to the examples of a split.

        Raises UserError for files other than array_record, which need TensorFlow.
        """
        try:
            source = self.builder.as_data_source(split=split, decoders=decoders)
            return Records(source, self.builder.data_dir)
        except NotImplementedError as error:
            raise errors.UserError(
                f"data.source: {self.where} in {self.builder.data_dir} is stored as"
                f" {self.info.file_format.value}, which cannot be read without"
                " TensorFlow; build it again in another data_dir with"
                " download_and_prepare(file_format='array_record')"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise damage_error(self.builder.data_dir, error) from error


class Records:
    """Random access to records; raises UserError where their files are damaged."""

    def __init__(self, source: Any, folder: Any):
        self._source, self._folder = source, folder

    def __len__(self) -> int:
        try:
            return len(self._source)
        except (OSError, RuntimeError, ValueError) as error:
            raise damage_error(self._folder, error) from error

    def __getitem__(self, i: int) -> Any:
        try:
            return self._source[i]
        except UnicodeDecodeError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise damage_error(self._folder, error) from error


def damage_error(folder: Any, error: Exception) -> errors.UserError:
    """Returns the error about a prepared data set that cannot be read."""
    why = " ".join(str(error).split())[:200]
    return errors.UserError(
        f"data.source: the data set in {folder} is damaged; prepare it again ({why})"
    )


def open_prepared(name: str, config_data: ConfigDict) -> PreparedDataset:
    """Opens the highest version of NAME[:config]; `config_data.split` may be a slice.

    Raises UserError where it is not prepared, is damaged, or has no such split.
    """
    # Imported here, since it takes seconds.
    import tensorflow_datasets as tfds

    where = f"tfds:{name} {config_data.split}"
    folder = _find_folder(name, config_data.data_dir)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:
        # Damaged JSON makes protobuf and TFDS raise errors of many kinds.
        raise damage_error(folder, error) from error
    count = _count_examples(builder.info, config_data.split, where)
    return PreparedDataset(where, folder, builder, count)


def describe_features(features: dict[str, Any]) -> dict[str, str]:
    """Returns {feature: its type}, for messages."""
    return {key: type(value).__name__ for key, value in features.items()}


def _find_folder(name: str, data_dir: str) -> "epath.Path":
    """Returns the folder of the highest prepared version of NAME[:config]."""
    from etils import epath

    where = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    if addresses.is_address(where):
        return _fetch_folder(name, addresses.parse(where))
    root = epath.Path(expand_user(where))
    folder = root / name.replace(":", "/")
    versions = sorted(_list_versions(folder), key=_parse_version)
    if versions:
        return versions[-1]
    raise _missing_error(name, root, _list_prepared(root))


def _fetch_folder(name: str, root: addresses.Address) -> "epath.Path":
    """Returns a copy of the folder of a data set at an address: array_record reads files."""
    from etils import epath

    ending = f"/{INFO}"
    found = [
        n.removesuffix(ending) for n in store.list_objects(root) if n.endswith(ending)
    ]
    folders = [epath.Path(folder) for folder in found]
    wanted = epath.Path(name.replace(":", "/"))
    versions = [f for f in folders if f.parent == wanted and VERSION.fullmatch(f.name)]
    versions += [folder for folder in folders if folder == wanted]
    if versions:
        last = max(versions, key=_parse_version)
        return epath.Path(user_path(str(root.join(last.as_posix()))))
    there = {":".join(folder.parts[:-1]) for folder in folders}
    raise _missing_error(name, root, there)


def _missing_error(name: str, root: object, there: set[str]) -> errors.UserError:
    return errors.UserError(
        f"data.source='tfds:{name}' is not prepared in data.data_dir={str(root)!r};"
        f" there is {sorted(there) or 'nothing'}; prepare it once with"
        f" `pip install 'flax-adapt[build]'` and `tfds build {name.replace(':', '/')}"
        f" --file_format=array_record --data_dir={root}`"
    )


def _list_versions(folder: "epath.Path") -> "Iterator[epath.Path]":
    """Yields `folder` itself where the name has a version, else the versions in it."""
    if (folder / INFO).exists():
        yield folder
    elif folder.is_dir():
        children = (c for c in folder.iterdir() if VERSION.fullmatch(c.name))
        yield from (child for child in children if (child / INFO).exists())


def _parse_version(folder: "epath.Path") -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.name)]


def _list_prepared(root: "epath.Path") -> set[str]:
    """Returns NAME or NAME:config of all prepared data sets in `root`."""
    found = [*root.glob(f"*/*/{INFO}"), *root.glob(f"*/*/*/{INFO}")]
    parts = (file.parent.parent.relative_to(root).parts for file in found)
    return {":".join(part) for part in parts}


def _count_examples(info: Any, split: str, where: str) -> int:
    """Returns the number of examples of `split`, which may be a slice or a sum.

    Raises UserError for a split that does not exist or is empty.
    """
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
