"""The table of all formats of weights, and functions that choose one."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from flax_adapt.base.errors import UserError, choose
from flax_adapt.weights.files import reading, torch_objects
from flax_adapt.weights.formats import (
    big_vision,
    dinov3,
    facebook,
    facebook_dinov2,
    huggingface,
    orbax_folder,
    timm,
    torchvision,
)
from flax_adapt.weights.names import translate
from flax_adapt.weights.writable import Content


class Format(Protocol):
    """A format: its module has these functions; `known`: see `weights`."""

    def detect(self, path: Path) -> bool: ...

    def model_config(self, path: Path, known: Mapping[str, Any]) -> dict[str, Any]: ...

    def pooling(self, path: Path, known: Mapping[str, Any]) -> str: ...

    def class_names(self, path: Path) -> tuple[str, ...] | None: ...

    def pixel_statistics(
        self, path: Path
    ) -> tuple[list[float], list[float]] | None: ...

    def open_source(
        self, path: Path, task: str, pooling: str, known: Mapping[str, Any]
    ) -> AbstractContextManager[translate.Opened]: ...

    def write(self, path: Path, content: Content) -> None: ...


AFTER = "mean_norm"  # the pooling with a norm after it
FORMATS: dict[str, Format] = {
    "huggingface": huggingface,
    "timm": timm,
    "torchvision": torchvision,
    "facebook_mae": facebook,
    "facebook_dinov2": facebook_dinov2,
    "timm_dinov3": dinov3.TIMM,
    "facebook_dinov3": dinov3.FACEBOOK,
    "big_vision": big_vision,
    "orbax": orbax_folder,
}
# All formats can be written. FIXED of a module: fields of the model config that a file of that
# format does not hold, with the values that all its readers assume.
WRITERS = FORMATS


# Formats that can hold the settings that a masked autoencoder was trained with.
RECONSTRUCTIONS = {
    "huggingface": huggingface.reconstruction,
    "orbax": orbax_folder.reconstruction,
}


def reconstruction(path: Path, format: str | None) -> dict[str, Any]:
    """Returns the settings that a masked autoencoder was trained with, if the source has any.

    Keys: normalize_patches, a bool; hidden_ratio, a number.
    """
    name = detect(path) if format is None else format
    return RECONSTRUCTIONS[name](path) if name in RECONSTRUCTIONS else {}


def detect(path: Path) -> str:
    """Returns the name of the format of a folder or file; raises UserError if there is none."""
    if not path.exists():
        raise UserError(
            f"{path}: there is no such file, and no config.json as in a model folder"
        )
    if (path / "stages").is_dir():
        has_export = (path / "export" / "config.json").is_file()
        own = f"{path / 'export'}, or " if has_export else ""  # of `adapt`
        raise UserError(
            f"{path}: is the workdir of a run; give {own}its stages/NAME/export, or "
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
            "of a ViT or ResNet (.safetensors, .pth, .bin, .npz) or a folder of our "
            "checkpoints"
        )
    return found[0]


def pooling_of(own: str, task: str, asked: str | None) -> str:
    """Returns the pooling to read a source with.

    own: the source's pooling. asked: the user's, or None for the source's. The norm of
    "mean_norm", which follows the pooling, belongs to classifiers: decoders were not trained
    with it, and an encoder gets it only if the user asks for it.
    """
    if own == AFTER and (task == "mae" or (asked is None and task != "classify")):
        return "cls"
    return asked or own


def without_norm(
    leaves: dict[str, Any], found: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns leaves and fields of the report, with a norm after the pooling ignored."""
    rule = "follows the pooling (mean_norm), which was not asked for"
    norm = {leaf for leaf in leaves if leaf.startswith("encoder/norm/")}
    sources = {name for name, leaf in found["renamed"].items() if leaf in norm}
    renamed = {k: v for k, v in found["renamed"].items() if k not in sources}
    ignored = {**found["ignored"], **dict.fromkeys(sources, rule)}
    kept = {leaf: value for leaf, value in leaves.items() if leaf not in norm}
    return kept, {**found, "renamed": renamed, "ignored": ignored}


def other_sets(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `strict.Report` that list the sets of weights in a file.

    {} for a file with one set, as most have.
    """
    places = reading.sets_of_weights(path)
    if len(places) < 2:
        return {}
    chosen = known.get(reading.WEIGHTS) or torch_objects.default_place(places)
    rule = "another set of weights in the file, which known weights={} takes".format
    others = [place for place in places if place != chosen]
    return {
        "ignored": {place: rule(place) for place in others},
        "assumed": {} if reading.WEIGHTS in known else {reading.WEIGHTS: chosen},
    }


def source_options(format: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments `format` and `known` of `load`, for values of a config or flags.

    There "" and 0 mean that a value is not set.
    """
    facts = {name: value for name, value in known.items() if value}
    return {"format": format or None, "known": facts}


def options_in(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the arguments of loading that `source_options` gives."""
    return {name: arguments[name] for name in ("format", "known") if name in arguments}


def rewordings(known: str, format: str) -> dict[str, str]:
    """Returns {regular expression: replacement} for the errors of `weights`, see `reword_errors`.

    These errors name the arguments `known` and `format`; commands and configs have other
    names. known: text before the name of a field, as "--known=". format: name of the flag or
    argument.
    """
    return {
        r"known=\{'(\w+)': (NUMBER|NAME)\}": rf"{known}\1=\2",
        r"known='(\w+)'(?= cannot be given)": rf"{known}\1",
        r"known (\w+)(?=[= ])": rf"{known}\1",
        r"give the format": f"give {format}",
        r"\bformat=(?=')": f"{format}=",
    }


def find(path: Path, name: str | None) -> Format:
    """Returns the format of a name, for None the detected one; raises UserError for others."""
    return choose("format", detect(path) if name is None else name, FORMATS)
