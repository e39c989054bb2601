"""Folders of a Hugging Face model, read: JSON, and tensors in one file or in shards."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from flax_adapt.errors import UserError
from flax_adapt.weights import torch_file

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_FILE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
LONGEST_NAME = 300
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; anything else is a UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: there is no {path.name}; give a Hugging Face model folder"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return value


def tensor_names(folder: Path) -> list[str]:
    """Names of all tensors, without reading them."""
    names: list[str] = []
    for file in _files(folder):
        with _opened(file) as handle:
            names += handle.keys()
    return names


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns {name: float32 array}, and {name: dtype} of those that had another."""
    tensors: dict[str, np.ndarray] = {}
    converted: dict[str, str] = {}
    for file in _files(folder):
        with _opened(file) as handle:
            for name in handle.keys():  # noqa: SIM118 (the handle is no mapping)
                if name in tensors:
                    raise UserError(f"{file}: {name} is in another shard too")
                if not name.isprintable() or len(name) > LONGEST_NAME:
                    raise UserError(f"{file}: {name[:80]!a} is no name of a tensor")
                tensor = handle.get_tensor(name)
                if tensor.dtype != np.float32:
                    converted[name] = tensor.dtype.name
                tensors[name] = tensor.astype(np.float32, copy=False)
    return tensors, converted


def _files(folder: Path) -> list[Path]:
    """The files of tensors of a model, by its index where it has one."""
    for file, index in ((FILE, INDEX), (TORCH_FILE, TORCH_INDEX)):
        if (folder / file).is_file():
            return [folder / file]
        if (folder / index).is_file():
            return _shards(folder / index)
    raise UserError(
        f"{folder}: there is neither {FILE} nor {INDEX} nor {TORCH_FILE}; give a "
        "Hugging Face model folder"
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index names, each of them in the folder of the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; download it again")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # An index is data: it must not point out of its folder.
        if name != Path(name).name or "\\" in name or not name.endswith(suffix):
            raise UserError(f"{index}: {name!r} is not the name of a shard beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index}: these shards are missing: {', '.join(missing)}")
    files = [index.parent / name for name in names]
    _check_index(index, weight_map, files)
    return files


def _check_index(index: Path, weight_map: Mapping[str, str], files: list[Path]) -> None:
    """Every tensor must be in the shard that the index names."""
    found: dict[str, str] = {}
    for file in files:
        with _opened(file) as handle:
            found |= dict.fromkeys(handle.keys(), file.name)
    wrong = sorted(
        name
        for name in {*weight_map, *found}
        if weight_map.get(name) != found.get(name)
    )
    if wrong:
        raise UserError(f"{index}: disagrees with the shards on {', '.join(wrong)}")


@contextlib.contextmanager
def _safetensors(file: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            yield handle
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a readable safetensors file ({error}); get it again"
        ) from None


# Suffix -> what opens such a file: a handle with `keys()` and `get_tensor(name)`.
FORMATS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    ".safetensors": _safetensors,
    ".bin": torch_file.opened,
}


def _opened(file: Path) -> AbstractContextManager[Any]:
    return FORMATS[file.suffix](file)
