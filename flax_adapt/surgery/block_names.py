"""Names of the parameters at the end of an encoder, which resizing changes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax_adapt import models


class BlockNames(NamedTuple):
    """Names of the leaves or layers that resizing changes, and the old width."""

    width: int
    down: str
    shortcut: str
    norm: str
    linear: str
    extra: str


def places(config_model: Mapping[str, Any]) -> BlockNames:
    """Returns the `BlockNames` of a transformer; config_model: before resizing."""
    block = f"encoder/block_{config_model['depth'] - 1:02d}"
    # Post-norm blocks end in a norm of their own; there is no norm after the last block.
    norm2 = "encoder/norm" if is_pre_norm(config_model) else f"{block}/norm2"
    return BlockNames(
        config_model["width"],
        f"{block}/mlp/down",
        f"{block}/shortcut/kernel",
        norm2,
        "encoder/linear",
        f"encoder/block_{config_model['depth']:02d}",
    )


def is_pre_norm(config_model: Mapping[str, Any]) -> bool:
    """Returns whether blocks of a transformer normalise what they read: ViT, ModernBERT."""
    traits = models.complete(config_model)["traits"]
    return config_model["kind"] == "vit" or bool(traits and traits["pre_norm"])
