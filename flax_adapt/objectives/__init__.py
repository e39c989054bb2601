"""Objectives: what is minimised. Each is a function with one signature.

    loss_fn(params, frozen, batch, key_B) -> (scalar loss, {"name": Mean(total, count), ...})

`params` trains, `frozen` holds what must not (the teacher), `batch["image"]` is float32
and normalised, `key_B` holds one key for every example. The metric "loss" is always
there; its count is what a sum of such losses over parts of a batch must be weighted by.
"""

from typing import Any

from flax import linen as nn

from flax_adapt import keys
from flax_adapt.data import image
from flax_adapt.errors import choose
from flax_adapt.objectives import classify, distill, reconstruct
from flax_adapt.types import LossFn

OBJECTIVES = {
    "reconstruct": reconstruct.make_loss,
    "distill": distill.make_loss,
    "classify": classify.make_loss,
}
# The model that an objective trains: a key of models.TASKS.
TASKS = {"reconstruct": "mae", "distill": "mae", "classify": "classify"}

# What an objective measures: what `eval.metric` may name.
METRICS = {
    "reconstruct": ("loss", "reconstruct"),
    "distill": ("loss", "reconstruct", "distill"),
    "classify": ("loss", "accuracy"),
}

_AUGMENT = 0x417


def build(config: Any, model: nn.Module, *, train: bool = True) -> LossFn:
    """Returns the loss of `config.name`. `train=False`: no dropout, mixing, smoothing."""
    return choose("objective.name", config.name, OBJECTIVES)(config, model, train)


def on_pixels(loss_fn: LossFn, config_data: Any, *, train: bool = True) -> LossFn:
    """The same loss for batches of uint8 images: augments and normalises on the device."""

    def loss_on_pixels(params, frozen, batch, key_B):
        pixels_BYXC = image.preprocess(
            batch["image"], keys.fold(key_B, _AUGMENT), config_data, train
        )
        return loss_fn(params, frozen, {**batch, "image": pixels_BYXC}, key_B)

    return loss_on_pixels
