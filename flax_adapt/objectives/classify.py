"""Supervised classification and regression, for fine-tuning and linear probes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt.base import keys
from flax_adapt.base.checks import Check, Context, Row, present
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Loss, Mean, Spearman, accuracy, confusion
from flax_adapt.base.types import HANDED, Array, Batch, Key, LossFn, Metrics, Params
from flax_adapt.models import batch_stats
from flax_adapt.objectives import mixing

# A batch may bring what the model makes of it: penalties look at the same logits.
LOGITS = "logits"
# The objectives whose model tells classes, by logits_BN.
OF_CLASSES = ("classify", "glad")
_MIX = 0x313


class _Projector(NamedTuple):
    """A `model.projector`, and the objective of its stage."""

    projector: Any
    objective: str


# A classifier may stand on a projector; what it says of an example must not depend on
# the batch.
_PROJECTOR = (
    Row(
        lambda it: it.objective in ("contrast", "classify"),
        "model.projector must be None for objective {0.objective!r}; 'contrast' and "
        "'classify' can have one",
    ),
    Row(
        lambda it: (
            it.objective != "classify"
            or not (it.projector.batch_norm or it.projector.predictor_layers)
        ),
        "model.projector of objective 'classify' needs batch_norm=False (what an example "
        "is taken for must not depend on its batch) and predictor_layers=0",
    ),
)


def _projectors(at: Context) -> list[_Projector]:
    name = at.section.objective.name
    return [_Projector(part, name) for part in present(at.section.model.projector)]


CHECKS = (Check(_projectors, _PROJECTOR),)


def smooth(labels_B: Array, num_classes: int, smoothing: float) -> Array:
    """One-hot targets_BN with `smoothing` of the mass spread over all classes."""
    targets_BN = jax.nn.one_hot(labels_B, num_classes, dtype=jnp.float32)
    return targets_BN * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits_BN: Array, targets_BN: Array) -> Array:
    """Returns loss_B. Logits (0, 0) and target (1, 0): log 2."""
    return -jnp.sum(targets_BN * jax.nn.log_softmax(logits_BN), axis=-1)


def logits_of(
    model: nn.Module, params: Params, batch: Batch, key_B: Key | None
) -> Array:
    """Returns logits_BN of a batch, float32, unless it brings them."""
    if LOGITS in batch:
        return batch[LOGITS]
    return model.apply({"params": params}, batch[model.modality], key_B)


def without_logits(batch: Batch) -> Batch:
    """The batch, of which the model has yet to say anything."""
    return {name: rows for name, rows in batch.items() if name != LOGITS}


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


def _outputs(
    model: nn.Module, params: Params, frozen: Params, batch: Batch, key_B: Key | None
) -> tuple[Array, Metrics]:
    """Returns what the model says of a batch; HANDED, where it keeps statistics.

    A batch may bring what is said of it, see `logits_of`.
    """
    if LOGITS in batch:
        return batch[LOGITS], {}
    variables = batch_stats.join_variables(model, params, frozen)
    # Batch norm must know which rows count.
    rows = {"weight_B": batch["weight"]} if model.keeps_statistics else {}
    train = key_B is not None
    outputs, variables = batch_stats.apply(
        model, variables, batch[model.modality], key_B, train=train, **rows
    )
    handed = batch_stats.hand_over(variables, train)
    return outputs, {HANDED: handed} if handed else {}


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """`config`: label_smoothing, mixup_alpha, cutmix_alpha (0: off; images only).

    Labels int32 [B]. F1 and Matthews correlation are measured in evaluation. A batch may
    bring its own logits, see `logits_of`; those of mixed images are computed always.
    """
    smoothing = config.label_smoothing if train else 0.0
    mixes = max(config.mixup_alpha, config.cutmix_alpha) > 0
    if mixes and model.modality != "image":
        raise UserError("objective.mixup_alpha and cutmix_alpha mix images, not text")

    def loss_fn(params, frozen, batch, key_B):
        targets_BN = smooth(batch["label"], model.num_classes, smoothing)
        if mixes and train:
            image_BYXC, targets_BN = _mixed(config, batch, targets_BN, key_B)
            batch = {**without_logits(batch), "image": image_BYXC}
        key_B = key_B if train else None
        logits_BN, handed = _outputs(model, params, frozen, batch, key_B)
        loss = Mean.of(cross_entropy(logits_BN, targets_BN), batch["weight"])
        correct = accuracy(logits_BN, batch["label"], batch["weight"])
        metrics = {"loss": Loss.of(loss), "accuracy": correct}
        if not train:
            metrics |= confusion(logits_BN, batch["label"], batch["weight"])
        return loss.value(), metrics | handed

    return loss_fn


def make_regression(config: Any, model: nn.Module, train: bool) -> LossFn:
    """Mean squared error of one number; `config` has no fields of its own.

    Labels float32 [B]. Spearman's correlation is measured in evaluation.
    """
    del config
    if model.num_classes != 1:
        raise UserError(
            f"objective 'regress' predicts one number: model.num_classes must be 1, not "
            f"{model.num_classes}"
        )

    def loss_fn(params, frozen, batch, key_B):
        key_B = key_B if train else None
        guess_B1, handed = _outputs(model, params, frozen, batch, key_B)
        guess_B, label_B = guess_B1[:, 0], batch["label"].astype(jnp.float32)
        loss = Mean.of(jnp.square(guess_B - label_B), batch["weight"])
        metrics: Metrics = {"loss": Loss.of(loss)}
        if not train:
            metrics["spearman"] = Spearman(guess_B, label_B, batch["weight"])
        return loss.value(), metrics | handed

    return loss_fn
