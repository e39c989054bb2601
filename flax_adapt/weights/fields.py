"""Checks the fields of a config.json; wrong values raise a UserError that names the field."""

import math
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flax_adapt import models
from flax_adapt.base.errors import UserError, choose

NUMBERS = {bool: "bool", int: "positive whole number", float: "positive float"}
# Fields that config.json has for all families of transformers: defaults, and our names.
DEFAULTS: dict[str, Any] = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
)
NAMES = dict(
    width="hidden_size",
    depth="num_hidden_layers",
    heads="num_attention_heads",
    mlp_dim="intermediate_size",
    layer_norm_eps="layer_norm_eps",
)
# Types of the argument `known`: fields of the model config that files may lack, and the name
# of the set of weights to load.
KNOWN = dict(heads=int, decoder_heads=int, gelu=str, layer_norm_eps=float, weights=str)
# Fields of a ResNet that no tensor shows; no file with other values is known.
OF_RESNET = ("image_size", "batch_norm_eps", "batch_norm_momentum")
HIDDEN_ACT = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
GELU = {v: k for k, v in HIDDEN_ACT.items()} | {"gelu_new": "tanh"}
# Fields of the objective that a masked autoencoder was trained with.
OF_RECONSTRUCTION = ("normalize_patches", "hidden_ratio")
# Largest accepted values of a model config: larger models would take minutes and all memory
# before they are compared with the tensors.
LARGEST: dict[str, float] = dict(
    image_size=8192,
    patch_size=1024,
    channels=1024,
    width=1 << 14,
    depth=256,
    heads=1024,
    mlp_dim=1 << 17,
    vocab_size=1 << 22,
    max_positions=1 << 20,
    token_types=1 << 16,
    layer_norm_eps=1.0,
    stem_width=1 << 14,
    batch_norm_eps=1.0,
    batch_norm_momentum=1.0,
)
# The same for fields that have a number for each stage of a ResNet.
LARGEST_OF_STAGES = dict(planes=1 << 14, depths=48)
# Fields that may be 0: DistilBERT has no token types.
MAY_BE_ZERO = ("token_types",)
# Kind of model -> fields that other checks use, and that must be there.
NEEDED = {
    "vit": ("image_size", "patch_size"),
    "resnet": ("image_size", "channels", "planes", "depths"),
}
MAX_POSITION_SIZE = 1 << 24  # patches times width: 1024 pixels, patch 8 and width 1024
# The file limits the size of an encoder; a fresh decoder needs a limit of its own.
MAX_DECODER_SIZE = 1 << 28
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 100


def check_numbers(
    where: str,
    theirs: Mapping[str, Any],
    defaults: Mapping[str, Any],
    names: Iterable[str],
) -> None:
    """Checks that every named field has the type of its default, and is positive."""
    for name in names:
        kind, value = type(defaults[name]), theirs[name]
        wrong = type(value) is not kind
        if wrong or (kind is not bool and not 0 < value < math.inf):
            raise UserError(f"{where}: {name}={show(value)} must be a {NUMBERS[kind]}")


def square(what: str, value: Any) -> int:
    """Returns N of a value N or [N, N]; raises UserError for anything else."""
    sides = value if isinstance(value, list) else [value, value]
    if [*map(type, sides)] != [int, int] or sides[0] != sides[1]:
        raise UserError(f"{what}={show(value)}: only squares are supported")
    return sides[0]


def check_sizes(where: str, config: Mapping[str, Any]) -> None:
    """Checks that the sizes of our model config and of its decoder are within LARGEST."""
    decoder = config.get("decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"{where}: decoder={show(decoder)} must be an object")
    for prefix, part in {"": config, "decoder.": decoder}.items():
        for name, largest in LARGEST.items():
            if name in MAY_BE_ZERO and part.get(name) == 0:
                continue
            if name in part and not _is_within(part[name], largest):
                raise UserError(
                    f"{where}: {prefix}{name}={show(part[name])} must be a number in "
                    f"(0, {largest}]"
                )
        if "image_size" in config and "width" in part:
            num_patches = (config["image_size"] / config["patch_size"]) ** 2
            if num_patches * part["width"] > MAX_POSITION_SIZE:
                raise UserError(
                    f"{where}: {num_patches:.0f} patches of width {part['width']} are "
                    "too many"
                )
    check_stages(where, config)
    if decoder and _num_weights(decoder) > MAX_DECODER_SIZE:
        raise UserError(f"{where}: a decoder of {show(decoder)} is too large")


def check_stages(where: str, config: Mapping[str, Any]) -> None:
    """Checks that fields in LARGEST_OF_STAGES are whole numbers within these limits."""
    for name, largest in LARGEST_OF_STAGES.items():
        found = config.get(name, [])
        numbers = [*found] if isinstance(found, list | tuple) else [None]
        if not all(_is_within(number, largest) for number in numbers):
            raise UserError(
                f"{where}: {name}={show(found)} must be whole numbers in [1, {largest}]"
            )


def check_model(where: str, config: Mapping[str, Any]) -> None:
    """Checks that a model config from a file can be built."""
    _check_text(where, config, "kind")
    choose(f"{where}: kind", config["kind"], models.TASKS)
    if config["kind"] != "resnet":
        _check_text(where, config, "gelu")
    needed = NEEDED.get(config["kind"], ())
    if missing := [name for name in needed if name not in config]:
        raise UserError(f"{where}: has no {', '.join(missing)}")
    check_sizes(where, config)


def _check_text(where: str, config: Mapping[str, Any], name: str) -> None:
    if not isinstance(config.get(name), str):
        raise UserError(f"{where}: {name}={show(config.get(name))} must be a name")


def _is_within(value: Any, largest: float) -> bool:
    return type(value) is type(largest) and 0 < value <= largest


def _num_weights(part: Mapping[str, Any]) -> int:
    """Returns the number of weights of the kernels in the blocks."""
    depth, width, mlp_dim = (part.get(k, 0) for k in ("depth", "width", "mlp_dim"))
    return depth * width * (4 * width + 2 * mlp_dim)


def show(value: Any) -> str:
    """Returns any value from a file as short text of one line, for errors."""
    return _repr.repr(value)


def check_supported(
    where: str, theirs: Mapping[str, Any], supported: Mapping[str, Any]
) -> None:
    """Checks that fields, where present, have the only value that our models support."""
    for name, value in supported.items():
        if name in theirs and theirs[name] != value:
            raise UserError(
                f"{where}: {name}={show(theirs[name])} is not supported, only {value!r}"
            )


def gelu(where: str, value: Any, name: str = "hidden_act") -> str:
    """Returns our name, "erf" or "tanh", of an activation in config.json; name: its field."""
    return choose(f"{where}: {name}", text(value), GELU)


def text(value: Any) -> str:
    """Returns the value of a field that should be a name; other values as short text."""
    return value if isinstance(value, str) and len(value) < 100 else show(value)


def labels_json(num_classes: int, class_names: tuple[str, ...] | None) -> dict:
    """Returns id2label and label2id; classes without a name are LABEL_0, LABEL_1, ...

    Names may repeat, as "crane" does in ImageNet; label2id then has the last one, as in
    transformers.
    """
    named = class_names or ()
    if len(named) > num_classes:
        raise UserError(
            f"class_names={show(named)} are {len(named)}, more than the {num_classes} "
            "outputs of the head"
        )
    labels = [*named, *(f"LABEL_{n}" for n in range(len(named), num_classes))]
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def class_names(where: str, theirs: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the names in id2label; None where there are none, or only LABEL_i."""
    labels = theirs.get("id2label")
    if not labels:
        return None
    wrong = UserError(f"{where}: id2label must map 0, 1, ... to names")
    if not isinstance(labels, dict):
        raise wrong
    numbers = [str(number) for number in range(len(labels))]
    if set(labels) != set(numbers) or {*map(type, labels.values())} != {str}:
        raise wrong
    found = tuple(labels[number] for number in numbers)
    default = tuple(f"LABEL_{number}" for number in numbers)
    return None if found == default else found


def pixel_statistics(
    where: str, theirs: Mapping[str, Any]
) -> tuple[list[float], list[float]]:
    """Returns image_mean and image_std, one number a channel each."""
    mean, std = (
        _pixels(f"{where}: {name}", theirs.get(name))
        for name in ("image_mean", "image_std")
    )
    if len(mean) != len(std) or not all(std):
        raise UserError(
            f"{where}: image_mean={show(mean)}, image_std={show(std)} must be as many, "
            "and image_std above 0"
        )
    return mean, std


def _pixels(what: str, value: Any) -> list[float]:
    if not isinstance(value, list) or not value or not all(map(_is_pixel, value)):
        raise UserError(f"{what}={show(value)} must be a list of numbers in [0, 1]")
    return value


def _is_pixel(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def check_reconstruction(
    where: str, found: Mapping[str, Any], names: Mapping[str, str]
) -> None:
    """Raises UserError for values of another type; names: our name -> the file's."""
    normalize, ratio = found.get("normalize_patches"), found.get("hidden_ratio")
    if type(normalize) not in (bool, type(None)):
        name = names["normalize_patches"]
        raise UserError(f"{where}: {name}={show(normalize)} must be true or false")
    if ratio is not None and not (type(ratio) in (int, float) and 0 <= ratio < 1):
        name = names["hidden_ratio"]
        raise UserError(f"{where}: {name}={show(ratio)} must be a number in [0, 1)")


def check_task(where: object, config: Mapping[str, Any], task: str) -> None:
    """Raises UserError for a task that the kind of model does not have."""
    kind = config["kind"]
    kept = [name for name in models.KEPT_TASKS if name in models.TASKS[kind]]
    choose(f"{where}: task of a {kind} model: task", task, dict.fromkeys(kept))


def check_known(
    where: object, known: Mapping[str, Any], allowed: Iterable[str]
) -> None:
    """Raises UserError for a field of `known` that the format does not take."""
    allowed = tuple(allowed)
    for name, value in known.items():
        if name not in allowed:
            only = f", only {', '.join(allowed)}" if allowed else ""
            raise UserError(f"{where}: known={name!r} cannot be given here{only}")
        kind = KNOWN[name]
        wrong = type(value) is not kind
        if wrong or (type(value) is not str and not value > 0):
            raise UserError(
                f"{where}: known {name}={show(value)} must be a {NUMBERS[kind]}"
            )
    if "gelu" in known:
        choose(f"{where}: known gelu", known["gelu"], models.GELU)


def assumed_values(
    config: Mapping[str, Any], pooling: str, stated: Collection[str], task: str
) -> dict[str, Any]:
    """Returns {field: value} of the fields whose values are only assumed.

    These are fields of KNOWN or OF_RESNET, which no tensor shows, and the `pooling` of a
    classifier. stated: the fields whose values come from a config or the user.
    """
    names = OF_RESNET if config["kind"] == "resnet" else KNOWN
    values = {name: config[name] for name in names if name in config}
    if task == "mae" and config["decoder"] is not None:
        values["decoder_heads"] = config["decoder"]["heads"]
    if task == "classify":
        values["pooling"] = pooling
    return {name: value for name, value in values.items() if name not in stated}
