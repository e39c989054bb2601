"""Folders of a Hugging Face model, written whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from flax_adapt.data import tokenizer
from flax_adapt.errors import UserError
from flax_adapt.weights.reading import CONFIG, FILE, PREPROCESSOR


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a model folder that make its tokenizer; none is a UserError."""
    files = [folder / name for name in tokenizer.FILES if (folder / name).is_file()]
    if not files:
        raise UserError(f"{folder}: holds no tokenizer ({', '.join(tokenizer.FILES)})")
    return files


def write(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    jsons: Mapping[str, Any],
    copied: list[Path],
) -> None:
    """Writes a model folder whole or not at all; replaces one written before.

    jsons: file name -> object. copied: files to copy beside them. Another folder that is
    in the way is a UserError.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for file in copied:
            shutil.copyfile(file, fresh / file.name)
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
    ours = {FILE, CONFIG, PREPROCESSOR, *tokenizer.FILES}
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
