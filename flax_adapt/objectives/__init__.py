"""Objectives: what is minimised. Each is a function with one signature.

    loss_fn(params, frozen, batch, key_B) -> (scalar loss, {"name": metric, ...})

`params` trains, `frozen` holds what must not (the teacher), `key_B` holds one key for
every example. The batch has "image" (float32, normalised) or "text" (`types.Text`), as
the model's `modality` says. Metrics are sums (`metrics`), divided once. The metric "loss"
is always there, a `metrics.Loss`: its terms are what parts of a batch are added up by.
"""

from typing import Any

from flax import linen as nn

from flax_adapt import keys
from flax_adapt.data import image
from flax_adapt.errors import choose
from flax_adapt.objectives import classify, distill, mlm, reconstruct
from flax_adapt.types import LossFn

OBJECTIVES = {
    "reconstruct": reconstruct.make_loss,
    "mlm": mlm.make_loss,
    "distill": distill.make_loss,
    "classify": classify.make_loss,
    "regress": classify.make_regression,
}
# The task (see `models.TASKS`) that an objective trains.
TASKS = {
    "reconstruct": "mae",
    "mlm": "mlm",
    "classify": "classify",
    "regress": "classify",
}
# What an objective measures: what `eval.metric` may name.
METRICS = {
    "reconstruct": ("loss", "reconstruct"),
    "mlm": ("loss", "mlm", "mlm_accuracy", "perplexity"),
    "classify": ("loss", "accuracy", "macro_f1", "micro_f1", "matthews"),
    "regress": ("loss", "spearman"),
}

_AUGMENT = 0x417


def task_of(config: Any) -> str:
    """The task that an objective trains; "distill" trains that of its masked part."""
    distills = choose("objective.name", config.name, OBJECTIVES) is distill.make_loss
    name = config.masked.name if distills else config.name
    return choose("objective.masked.name", name, TASKS)


def metrics_of(config: Any) -> tuple[str, ...]:
    """What an objective measures: what `eval.metric` may name."""
    if config.name == "distill":
        return (*METRICS[config.masked.name], "distill")
    return METRICS[config.name]


def build(config: Any, model: nn.Module, *, train: bool = True) -> LossFn:
    """Returns the loss of `config.name`. `train=False`: no dropout, mixing, smoothing."""
    return choose("objective.name", config.name, OBJECTIVES)(config, model, train)


def on_pixels(loss_fn: LossFn, config_data: Any, *, train: bool = True) -> LossFn:
    """The same loss for batches of uint8 images: augments and normalises on the device.

    Text comes as the model takes it: its loss stays as it is.
    """
    if config_data.modality != "image":
        return loss_fn

    def loss_on_pixels(params, frozen, batch, key_B):
        pixels_BYXC = image.preprocess(
            batch["image"], keys.fold(key_B, _AUGMENT), config_data, train
        )
        return loss_fn(params, frozen, {**batch, "image": pixels_BYXC}, key_B)

    return loss_on_pixels
