"""Supervised classification, for fine-tuning and linear probes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt import keys, mixing
from flax_adapt.metrics import Mean, accuracy
from flax_adapt.types import Array, LossFn

_MIX = 0x313


def smooth(labels_B: Array, num_classes: int, smoothing: float) -> Array:
    """One-hot targets_BN with `smoothing` of the mass spread over all classes."""
    targets_BN = jax.nn.one_hot(labels_B, num_classes, dtype=jnp.float32)
    return targets_BN * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits_BN: Array, targets_BN: Array) -> Array:
    """Returns loss_B. Logits (0, 0) and target (1, 0): log 2."""
    return -jnp.sum(targets_BN * jax.nn.log_softmax(logits_BN), axis=-1)


def _mixed(config: Any, batch, targets_BN: Array, key_B) -> tuple[Array, Array]:
    """Images and targets mixed with the batch in reverse order (as timm pairs them)."""
    image_BYXC, weight_B = batch["image"], batch["weight"]
    # A partner that could not be decoded is all zeros: mix with oneself instead.
    usable_B111 = (weight_B[::-1] > 0)[:, None, None, None]
    partner_BYXC = jnp.where(usable_B111, image_BYXC[::-1], image_BYXC)
    partner_BN = jnp.where(usable_B111[:, 0, 0], targets_BN[::-1], targets_BN)
    image_BYXC, lam_B = mixing.mix(
        image_BYXC,
        partner_BYXC,
        keys.fold(key_B, _MIX),
        config.mixup_alpha,
        config.cutmix_alpha,
    )
    lam_B1 = lam_B[:, None]
    return image_BYXC, lam_B1 * targets_BN + (1 - lam_B1) * partner_BN


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """`config`: label_smoothing, mixup_alpha, cutmix_alpha (0: off). Labels int32 [B]."""
    smoothing = config.label_smoothing if train else 0.0
    mixes = train and max(config.mixup_alpha, config.cutmix_alpha) > 0

    def loss_fn(params, frozen, batch, key_B):
        del frozen
        image_BYXC = batch["image"]
        targets_BN = smooth(batch["label"], model.num_classes, smoothing)
        if mixes:
            image_BYXC, targets_BN = _mixed(config, batch, targets_BN, key_B)
        logits_BN = model.apply(
            {"params": params}, image_BYXC, key_B if train else None
        )
        loss = Mean.of(cross_entropy(logits_BN, targets_BN), batch["weight"])
        correct = accuracy(logits_BN, batch["label"], batch["weight"])
        return loss.value(), {"loss": loss, "accuracy": correct}

    return loss_fn
