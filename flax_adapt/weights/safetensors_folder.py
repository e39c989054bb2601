"""Folders of safetensors files: one file, or shards with an index."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from flax_adapt.errors import UserError

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; anything else is a UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: there is no {path.name}; give a Hugging Face model folder"
        ) from None
    except (OSError, ValueError) as error:
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
                tensor = handle.get_tensor(name)
                if tensor.dtype != np.float32:
                    converted[name] = tensor.dtype.name
                tensors[name] = tensor.astype(np.float32, copy=False)
    return tensors, converted


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model, by its index where it has one."""
    if (folder / FILE).is_file():
        return [folder / FILE]
    if (folder / INDEX).is_file():
        return _shards(folder / INDEX)
    pickles = [p.name for p in folder.glob("*.bin")] if folder.is_dir() else []
    hint = f"; {pickles[0]} is a pickle, which could run code" if pickles else ""
    raise UserError(
        f"{folder}: there is neither {FILE} nor {INDEX}{hint}; save the model again "
        "with safetensors"
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index names, each of them in the folder of the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # An index is data: it must not point out of its folder.
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
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
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            yield handle
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a readable safetensors file ({error}); get it again"
        ) from None


def write(
    folder: Path, tensors: Mapping[str, np.ndarray], jsons: Mapping[str, Any]
) -> None:
    """Writes a model folder whole or not at all; replaces one written before.

    jsons: file name -> object. Another folder that is in the way is a UserError.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, value in jsons.items():
            (fresh / name).write_text(json.dumps(value, indent=2) + "\n")
        contiguous = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
        # transformers reads the key "format" to know who wrote the tensors.
        safetensors.numpy.save_file(contiguous, fresh / FILE, metadata={"format": "pt"})
        _share(fresh)
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    ours = {FILE, CONFIG, PREPROCESSOR}
    others = [] if folder.is_dir() else [folder.name]
    if folder.is_dir():
        others = sorted(p.name for p in folder.iterdir() if p.name not in ours)
    if others:
        raise UserError(
            f"{folder}: holds {', '.join(others[:3])}, which no export wrote; choose "
            "another folder"
        )


def _swap(fresh: Path, folder: Path) -> None:
    """Renames `fresh` to `folder`; what was there goes away only after that."""
    if not folder.exists():
        os.rename(fresh, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, old)  # onto an empty directory
    os.rename(fresh, folder)
    shutil.rmtree(old)


def _share(folder: Path) -> None:
    """Gives the usual rights: mkdtemp and safetensors make private files."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)
