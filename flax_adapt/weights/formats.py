"""Formats of weights by table: how each is recognised, read and written."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from flax_adapt.errors import UserError, choose
from flax_adapt.weights import (
    big_vision,
    facebook,
    huggingface,
    orbax_folder,
    timm,
    translate,
)


class Format(Protocol):
    """What a module of a format does; `known`: see `weights.load`."""

    def detect(self, path: Path) -> bool: ...

    def model_config(self, path: Path, known: Mapping[str, Any]) -> dict[str, Any]: ...

    def pooling(self, path: Path) -> str: ...

    def class_names(self, path: Path) -> tuple[str, ...] | None: ...

    def pixel_statistics(
        self, path: Path
    ) -> tuple[list[float], list[float]] | None: ...

    def opened(
        self, path: Path, task: str, pooling: str, known: Mapping[str, Any]
    ) -> AbstractContextManager[translate.Opened]: ...


FORMATS: dict[str, Format] = {
    "huggingface": huggingface,
    "timm": timm,
    "facebook_mae": facebook,
    "big_vision": big_vision,
    "orbax": orbax_folder,
}
# What can be written. FIXED of a module: fields of the model config that a file of it
# cannot hold, with the values that all its readers assume.
WRITERS = {
    "huggingface": huggingface,
    "timm": timm,
    "facebook_mae": facebook,
    "big_vision": big_vision,
}


def detect(path: Path) -> str:
    """Returns the name of the one format that a folder or file has."""
    if not path.exists():
        raise UserError(
            f"{path}: there is no such file, and no config.json as in a model folder"
        )
    if (path / "stages").is_dir():
        raise UserError(
            f"{path}: is the workdir of a run; give its stages/NAME/export, or "
            "stages/NAME/checkpoints"
        )
    found = [name for name, one in FORMATS.items() if one.detect(path)]
    if len(found) > 1:
        raise UserError(f"{path}: could be any of {found}; give the format")
    if not found and path.is_file() and (path.parent / "config.json").is_file():
        raise UserError(f"{path}: is part of a model folder; give {path.parent}")
    if not found:
        raise UserError(
            f"{path}: is none of {tuple(FORMATS)}: give a folder with config.json, a file "
            "of a ViT (.safetensors, .pth, .bin, .npz) or a folder of our checkpoints"
        )
    return found[0]


def find(path: Path, name: str | None) -> Format:
    """Returns the format of that name, or of None the one that `path` has."""
    return choose("format", detect(path) if name is None else name, FORMATS)
