"""Reads the tensors of a model one by one, from one file or from shards; reads JSON files.

with reading.open_tensors(folder) as tensors:
    array = tensors["vit.layernorm.weight"].get()  # float32
"""

import contextlib
import dataclasses
import json
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import files
from flax_adapt.weights.files import safetensors as safetensors_file
from flax_adapt.weights.files import torch as torch_file
from flax_adapt.weights.files.files import LazyTensor

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_FILE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# Limits above the largest models of the hub: all shards are open at once, and each name costs
# the time to find its leaf.
MAX_SHARDS, MAX_TENSORS = 250, 50_000
MAX_DEPTH = 50
NUM_NAMED = 5
# Prefixes that wrappers add to every name, in any order and depth: those of torch's
# DistributedDataParallel and `compile`, and of classes in training scripts.
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.")
# The field of `known` that names the set of weights to load from a file with several.
WEIGHTS = "weights"
NOTHING: Mapping[str, Any] = types.MappingProxyType({})


def _open_safetensors(
    path: Path, place: str | None
) -> AbstractContextManager[dict[str, LazyTensor]]:
    """As `torch_file.open_tensors`; raises UserError for a place: the file has one set."""
    if place:
        raise UserError(
            f"{path}: known={WEIGHTS!r} cannot be given here: it holds one set of weights"
        )
    return safetensors_file.open_tensors(path)


Open = Callable[[Path, str | None], AbstractContextManager[dict[str, LazyTensor]]]
# Suffix -> the function that opens such a file and yields its tensors by name.
FORMATS: dict[str, Open] = {
    ".safetensors": _open_safetensors,
    ".bin": torch_file.open_tensors,
    ".pth": torch_file.open_tensors,
    ".pt": torch_file.open_tensors,
}


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; raises UserError for any other content."""
    if not files.is_file(path):
        raise UserError(
            f"{path.parent}: there is no {path.name}; give a Hugging Face model folder"
        )
    try:
        with files.open_file(path) as file:
            if file.length > files.MAX_PART:
                raise UserError(f"{path}: {file.length} bytes are too long")
            value = json.loads(file.read().decode("utf-8-sig"))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict) or _is_deep(value):
        raise UserError(f"{path}: must hold a JSON object")
    return value


def _is_deep(value: Any) -> bool:
    """Whether a value is nested so deeply that printing it could overflow the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        children = [v.values() if isinstance(v, dict) else v for v in level]
        level = [v for c in children for v in c if isinstance(v, dict | list)]
    return bool(level)


@contextmanager
def open_tensors(
    path: Path, known: Mapping[str, Any] = NOTHING
) -> Iterator[Mapping[str, LazyTensor]]:
    """Yields the tensors of a Hugging Face folder, or of one file, by name.

    `get()` reads a tensor; the files stay open until the end of the context. Prefixes of
    WRAPPERS that all names have are removed; `name` of a tensor still has them. known: its
    field WEIGHTS names the set of weights of a torch file that holds several. Raises
    UserError for files that are damaged or incomplete.
    """
    with _open_place(path, known.get(WEIGHTS) or None) as tensors:
        yield tensors


@contextmanager
def _open_place(path: Path, place: str | None) -> Iterator[dict[str, LazyTensor]]:
    tensors: dict[str, LazyTensor] = {}
    with contextlib.ExitStack() as stack:
        paths, weight_map = _parts(path)
        for file in paths:
            found = stack.enter_context(_format(file)(file, place))
            for name in found:
                if name in tensors:
                    raise UserError(f"{file}: {name} is in another shard too")
            if weight_map is not None:
                _check_index(file, found, weight_map)
            tensors |= found
            if len(tensors) > MAX_TENSORS:
                raise UserError(f"{file}: more than {MAX_TENSORS} tensors are no model")
        yield _unwrap(tensors)


def _unwrap(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    prefix = _wrappers_of_all(tensors)
    return (
        {
            name.removeprefix(prefix): dataclasses.replace(tensor, name=name)
            for name, tensor in tensors.items()
        }
        if prefix
        else tensors
    )


def _wrappers_of_all(names: Collection[str]) -> str:
    """Returns the longest prefix of all names that is made of WRAPPERS."""
    first, last = min(names, default=""), max(names, default="")
    end = (
        0  # a common prefix of the first and the last name in order is one of all names
    )
    while found := next((w for w in WRAPPERS if first.startswith(w, end)), None):
        if not last.startswith(first[: end + len(found)]):
            break
        end += len(found)
    return first[:end]


def tensor_names(path: Path, known: Mapping[str, Any] = NOTHING) -> list[str]:
    """Returns the names of all tensors, without reading them.

    For a file with several sets of weights, of which `known` names none: those of the
    default set, or else of the first.
    """
    with _open_place(path, known.get(WEIGHTS, torch_file.ANY)) as tensors:
        return list(tensors)


def sets_of_weights(path: Path) -> list[str]:
    """Returns the places of the sets of weights in a torch file; [] for other files."""
    folder_of_torch = path.is_dir() and not files.is_file(path / FILE)
    file = path / TORCH_FILE if folder_of_torch else path
    is_torch = (
        file.suffix in FORMATS and FORMATS[file.suffix] is torch_file.open_tensors
    )
    return torch_file.state_dicts(file) if is_torch and files.is_file(file) else []


def _parts(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Returns (files of tensors, {tensor: file name} of the index or None)."""
    if files.is_file(path):
        return [path], None
    for file, index in ((FILE, INDEX), (TORCH_FILE, TORCH_INDEX)):
        if files.is_file(path / file):
            return [path / file], None
        if files.is_file(path / index):
            return _shards(path / index)
    raise UserError(
        f"{path}: there is neither {FILE} nor {INDEX} nor {TORCH_FILE}; give a "
        "Hugging Face model folder"
    )


def _format(file: Path) -> Open:
    if file.suffix not in FORMATS:
        raise UserError(f"{file}: is none of {', '.join(FORMATS)}")
    return FORMATS[file.suffix]


def _shards(index: Path) -> tuple[list[Path], dict[str, str]]:
    """Returns (files, {tensor: file name}) of an index; all files are in its folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; download it again")
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    names = sorted({str(name) for name in weight_map.values()})
    if len(names) > MAX_SHARDS:
        raise UserError(f"{index}: names {len(names)} shards, more than {MAX_SHARDS}")
    for name in names:
        # An index must not name files outside of its folder. Links in the folder may lead
        # outside: the cache of the hub consists of such links.
        plain = name == Path(name).name and "\\" not in name
        if not plain or not name.endswith(suffix):
            shown = ascii(name[: files.LONGEST_TEXT])
            raise UserError(f"{index}: {shown} is not the name of a shard beside it")
    missing = [name for name in names if not files.is_file(index.parent / name)]
    if missing:
        raise UserError(f"{index}: these shards are missing: {_few(missing)}")
    return [index.parent / name for name in names], weight_map


def _check_index(
    file: Path, found: Mapping[str, Any], weight_map: Mapping[str, str]
) -> None:
    """Raises UserError unless every tensor is in the shard that the index names."""
    wrong = [name for name in found if weight_map.get(name) != file.name]
    here = [name for name, shard in weight_map.items() if shard == file.name]
    wrong += [name for name in here if name not in found]
    if wrong:
        raise UserError(f"{file}: its index disagrees with the shards on {_few(wrong)}")


def _few(names: list[str]) -> str:
    """Returns the first names as one readable line."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:NUM_NAMED]]
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(name[: files.LONGEST_TEXT] for name in shown) + more
