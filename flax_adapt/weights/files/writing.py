"""Folders and files of a model, written whole or not at all, tensor by tensor."""

import codecs
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.data.texts import tokenizer
from flax_adapt.weights.files.reading import CONFIG, FILE, PREPROCESSOR
from flax_adapt.weights.names.translate import Tensors

Save = Callable[[Path, Tensors], None]
# The length of the header is a multiple of ALIGNMENT bytes, so that the tensors are aligned.
ALIGNMENT = 8
# Names in a folder with an Orbax checkpoint: of the arrays, and of the model config.
STATE, MODEL = "state", "model.json"
# What a recipe adds to an exported folder: a model card, known by its tag, and a temperature.
CARD, CARD_TAG, CALIBRATION = "README.md", "tags: [flax_adapt, ", "calibration.json"
# A fixed time for every member of a .npz file: the same weights give the same bytes.
NO_TIME = (1980, 1, 1, 0, 0, 0)


def tokenizer_files(folder: Path) -> list[Path]:
    """Returns the tokenizer files of a model folder; raises UserError if there are none."""
    files = [folder / name for name in tokenizer.FILES if (folder / name).is_file()]
    if not files:
        raise UserError(f"{folder}: holds no tokenizer ({', '.join(tokenizer.FILES)})")
    return files


def write(
    folder: Path,
    tensors: Tensors,
    jsons: Mapping[str, Any],
    copied: list[Path],
) -> None:
    """Writes a model folder with its tensors in one safetensors file, see `write_folder`."""
    write_folder(
        folder, lambda fresh: save_safetensors(fresh / FILE, tensors), jsons, copied
    )


def write_folder(
    folder: Path,
    save: Callable[[Path], None],
    jsons: Mapping[str, Any],
    copied: list[Path],
) -> None:
    """Writes a model folder whole or not at all; replaces a model folder written before.

    save: writes the tensors into a folder. jsons: {file name: object}. copied: files to copy
    into the folder. Raises UserError where the folder exists with other files.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for file in copied:
            # Without the byte order mark (BOM) of UTF-8, which some readers reject.
            content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
            (fresh / file.name).write_bytes(content)
        for name, value in jsons.items():
            (fresh / name).write_text(json.dumps(value, indent=2) + "\n")
        save(fresh)
        _share(fresh)
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    ours = {FILE, CONFIG, PREPROCESSOR, STATE, MODEL, CALIBRATION, *tokenizer.FILES}
    ours |= {CARD} if _is_own_card(folder / CARD) else set()
    others = [] if folder.is_dir() else [folder.name]
    if folder.is_dir():
        others = sorted(p.name for p in folder.iterdir() if p.name not in ours)
    if others:
        raise UserError(
            f"{folder}: holds {', '.join(others[:3])}, which no export wrote; choose "
            "another folder"
        )


def _is_own_card(file: Path) -> bool:
    return file.is_file() and CARD_TAG in file.read_text("utf-8", errors="replace")


def _swap(fresh: Path, folder: Path) -> None:
    """Renames `fresh` to `folder`; an old folder is deleted only after that."""
    if not folder.exists():
        os.rename(fresh, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, old)  # onto an empty directory
    os.rename(fresh, folder)
    shutil.rmtree(old)


def _share(folder: Path) -> None:
    """Sets the usual permissions: mkdtemp makes private folders."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.iterdir():
        if file.is_file():  # Orbax's folder has the usual permissions
            file.chmod(0o666 & ~mask)


def write_file(path: Path, tensors: Tensors, save: Save) -> None:
    """Writes a single file whole or not at all; replaces an existing file.

    Raises UserError where `path` is a folder.
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        save(fresh / path.name, tensors)
        _share(fresh)
        os.replace(fresh / path.name, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def save_safetensors(file: Path, tensors: Tensors) -> None:
    """Writes float32 tensors (format: see `safetensors_file`), one at a time."""
    # transformers reads the key "format", which names the library of the tensors.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors():
        begin, end = end, end + array.nbytes
        shape, span = list(array.shape), [begin, end]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": span}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors():
            stream.write(np.ascontiguousarray(array, "<f4").data)


def save_npz(file: Path, tensors: Tensors) -> None:
    """Writes float32 tensors as `numpy.savez` does, one at a time."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors():
            member = zipfile.ZipInfo(f"{name}.npy", NO_TIME)
            with archive.open(member, "w", force_zip64=True) as stream:
                contiguous = np.ascontiguousarray(array, "<f4")
                np.lib.format.write_array(stream, contiguous, allow_pickle=False)
