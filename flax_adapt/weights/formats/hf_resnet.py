"""Reads and writes config.json of Hugging Face's ResNet.

Some fields are ours, which transformers does not have: `image_size`, and eps and momentum of
batch norm (in transformers they are torch's defaults). For a resized last block see `extras`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.models.resnet_config import EXPANSION
from flax_adapt.weights import extras, fields
from flax_adapt.weights.formats.torch_resnet import ASSUMED
from flax_adapt.weights.names.names import Names
from flax_adapt.weights.names.resnet import HUGGING_FACE

# The only pooling in transformers and of our models.
POOLING = "mean"
# Task -> parts of the parameters that it does not have.
IGNORED = {"encoder": ("head",), "classify": ()}
# Defaults of transformers' ResNetConfig, and ours.
DEFAULTS: dict[str, Any] = dict(
    num_channels=3,
    embedding_size=64,
    hidden_sizes=[256, 512, 1024, 2048],
    depths=[3, 4, 6, 3],
    **ASSUMED,
)
FIELDS = dict(
    image_size="image_size",
    channels="num_channels",
    stem_width="embedding_size",
    batch_norm_eps="batch_norm_eps",
    batch_norm_momentum="batch_norm_momentum",
)
# Fields of config.json with the only value that our models support.
SUPPORTED: dict[str, Any] = dict(
    layer_type="bottleneck",
    hidden_act="relu",
    downsample_in_first_stage=False,
    downsample_in_bottleneck=False,
)
ARCHITECTURES = {"encoder": "ResNetModel", "classify": "ResNetForImageClassification"}


def names(config: Mapping[str, Any], task: str) -> Names:
    """Returns the table of names; it is the same for all configs and tasks."""
    del config, task
    return HUGGING_FACE


def constants(config: Mapping[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    """Returns {}: the classes have no tensors but those of our models."""
    del config, prefix
    return {}


def ignored(task: str, pooling: str) -> tuple[str, ...]:
    """Returns the parts of the parameters that a task does not have; they are ignored."""
    del pooling
    return IGNORED[task]


def model_config(
    where: str, kind: str, theirs: Mapping[str, Any], found: Iterable[str]
) -> dict[str, Any]:
    """Returns our model config of a config.json; raises UserError where we cannot build it."""
    del found
    theirs = {**DEFAULTS, **theirs}
    fields.check_numbers(where, theirs, DEFAULTS, FIELDS.values())
    fields.check_supported(where, theirs, SUPPORTED)
    widths, depths = theirs["hidden_sizes"], theirs["depths"]
    for name in ("hidden_sizes", "depths"):
        _check_stages(f"{where}: {name}", theirs[name])
    if any(width % EXPANSION for width in widths):
        raise UserError(
            f"{where}: hidden_sizes={fields.show(widths)} must be multiples of {EXPANSION}"
        )
    return {
        "kind": kind,
        **{ours: theirs[name] for ours, name in FIELDS.items()},
        "planes": [width // EXPANSION for width in widths],
        "depths": list(depths),
        "last_block": extras.read(where, theirs)["last_block"],
    }


def _check_stages(what: str, value: Any) -> None:
    numbers = value if isinstance(value, list) else []
    if {*map(type, numbers)} != {int}:
        raise UserError(f"{what}={fields.show(value)} must be a list of whole numbers")


def architecture(config: Mapping[str, Any], task: str) -> str:
    """Returns the name of the transformers class for a model of a task."""
    del config
    return ARCHITECTURES[task]


def config_json(
    config: Mapping[str, Any], task: str, num_classes: int
) -> dict[str, Any]:
    """Returns the config.json of a model, without the fields that all families share."""
    del task, num_classes
    return {
        "model_type": "resnet",
        **{name: config[ours] for ours, name in FIELDS.items()},
        "hidden_sizes": [EXPANSION * planes for planes in config["planes"]],
        "depths": list(config["depths"]),
        **SUPPORTED,
    }
