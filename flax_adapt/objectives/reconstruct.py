"""Masked auto-encoding of images (He et al. 2022, section 3; S1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt import models
from flax_adapt.base import keys, placement
from flax_adapt.base.metrics import Loss, Mean
from flax_adapt.base.types import Array, Batch, Key, LossFn, Params
from flax_adapt.models import masking, residual

_MASK = 0x3A5
_EPS = 1e-6  # inside the root of the target's deviation, as in the reference code


def patch_targets(image_BYXC: Array, patch_size: int, normalize: bool) -> Array:
    """Returns target_BLP, float32: the pixels of every patch.

    normalize: each patch is normalised by its mean and UNBIASED variance.
    """
    target_BLP = models.patchify(image_BYXC, patch_size)
    if not normalize:
        return target_BLP
    mean_BL1 = jnp.mean(target_BLP, axis=-1, keepdims=True)
    variance_BL1 = jnp.var(target_BLP, axis=-1, keepdims=True, ddof=1)
    return (target_BLP - mean_BL1) / jnp.sqrt(variance_BL1 + _EPS)


def restore_pixels(
    prediction_BLP: Array, image_BYXC: Array, patch_size: int, normalize: bool
) -> Array:
    """Returns predicted patches in the scale of the image: undoes `patch_targets`.

    image_BYXC: the images, whose patches have the mean and variance that are put back.
    """
    if not normalize:
        return prediction_BLP
    pixels_BLP = models.patchify(image_BYXC, patch_size)
    mean_BL1 = jnp.mean(pixels_BLP, axis=-1, keepdims=True)
    variance_BL1 = jnp.var(pixels_BLP, axis=-1, keepdims=True, ddof=1)
    return prediction_BLP * jnp.sqrt(variance_BL1 + _EPS) + mean_BL1


def mean_error(prediction_BUP: Array, target_BUP: Array, weight_B: Array) -> Mean:
    """Returns the mean squared error over the U hidden patches of the whole batch.

    One patch with the errors (1, 3): (1 + 9) / 2 = 5.
    """
    error_BU = jnp.mean(jnp.square(prediction_BUP - target_BUP), axis=-1)
    return Mean.of(error_BU, jnp.broadcast_to(weight_B[:, None], error_BU.shape))


def _make_predict(config: Any, model: nn.Module, train: bool) -> Callable[..., Any]:
    """Returns (params, batch, key_B) -> (prediction_BUP, hidden_BU), see `predict_hidden`.

    The mask is drawn with the keys, unless the batch has noise_BL, float32, under "noise"
    (the patches with the smallest values stay visible).
    """

    def predict(params: Params, batch: Batch, key_B: Key) -> tuple[Array, Array]:
        noise_BL = batch.get("noise")
        if noise_BL is None:
            key_mask_B = keys.fold(key_B, _MASK)
            noise_BL = masking.patch_noise(key_mask_B, model.config.num_patches)
        noise_BL = placement.place("inputs", noise_BL)
        return model.apply(
            {"params": params},
            batch["image"],
            noise_BL,
            key_B if train else None,
            config.hidden_ratio,
            method="predict_hidden",
        )

    return predict


def make_distance(
    config: Any, model: nn.Module, train: bool
) -> Callable[[Params, Params, Batch, Key], Mean]:
    """Returns (params, teacher's params, batch, key_B) -> mean squared difference.

    Both predict the same hidden patches; ours, for an ablation of S1. The teacher has no
    dropout.
    """
    student, teacher = (_make_predict(config, model, drops) for drops in (train, False))

    def distance(params: Params, other: Params, batch: Batch, key_B: Key) -> Mean:
        ours_BUP, _ = student(params, batch, key_B)
        theirs_BUP = jax.lax.stop_gradient(teacher(other, batch, key_B)[0])
        return mean_error(ours_BUP, theirs_BUP, batch["weight"])

    return distance


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """Returns the mean squared error of the hidden patches of a masked auto-encoder.

    `config`: hidden_ratio, normalize_patches.
    """
    arch, predict = model.config, _make_predict(config, model, train)

    def loss_fn(params, frozen, batch, key_B):
        del frozen
        prediction_BUP, hidden_BU = predict(params, batch, key_B)
        target_BLP = patch_targets(
            batch["image"], arch.patch_size, config.normalize_patches
        )
        target_BUP = residual.at_places(hidden_BU)(target_BLP)
        loss = mean_error(prediction_BUP, target_BUP, batch["weight"])
        return loss.value(), {"loss": Loss.of(loss), "reconstruct": loss}

    return loss_fn
