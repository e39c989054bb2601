"""Supervised classification and regression, for fine-tuning and linear probes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt.base import keys
from flax_adapt.base.checks import Check, Context, Row, present
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import (
    Loss,
    Mean,
    Predictions,
    Spearman,
    accuracy,
    confusion,
)
from flax_adapt.base.types import (
    CARRY_INPUT,
    Array,
    Batch,
    Key,
    LossFn,
    Metrics,
    Params,
)
from flax_adapt.models import batch_stats
from flax_adapt.objectives import mixing

# The entry of a batch for logits that the objective and its penalties share.
LOGITS = "logits"
# The objectives whose model predicts classes, with logits_BN.
OF_CLASSES = ("classify", "glad")
_MIX = 0x313


class _Projector(NamedTuple):
    """A `model.projector`, and the objective of its stage."""

    projector: Any
    objective: str


# A classifier may have a projector. Its logits of an example must not depend on the other
# examples of the batch.
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
    """Returns one-hot targets_BN, float32, `smoothing` of the mass spread over all classes.

    labels_B: int, in [0, num_classes).
    """
    targets_BN = jax.nn.one_hot(labels_B, num_classes, dtype=jnp.float32)
    return targets_BN * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits_BN: Array, targets_BN: Array) -> Array:
    """Returns the cross-entropy loss_B in nats. Logits (0, 0) and target (1, 0): log 2."""
    return -jnp.sum(targets_BN * jax.nn.log_softmax(logits_BN), axis=-1)


def logits_of(
    model: nn.Module, params: Params, batch: Batch, key_B: Key | None
) -> Array:
    """Returns logits_BN, float32: those in the batch if it has any, else the model's."""
    if LOGITS in batch:
        return batch[LOGITS]
    return model.apply({"params": params}, batch[model.modality], key_B)


def without_logits(batch: Batch) -> Batch:
    """Returns the batch without stored logits, so that `logits_of` applies the model."""
    return {name: rows for name, rows in batch.items() if name != LOGITS}


def _mix_batch(config: Any, batch, targets_BN: Array, key_B) -> tuple[Array, Array]:
    """Returns images and targets, mixed with the reversed batch (as timm pairs them)."""
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
    """Returns the outputs of the model, [B, N], and {CARRY_INPUT: its new running statistics}.

    The dict is {} without batch norm and in evaluation. Logits that the batch has are
    returned as they are, see `logits_of`.
    """
    if LOGITS in batch:
        return batch[LOGITS], {}
    variables = batch_stats.join_variables(model, params, frozen)
    # Batch norm leaves out rows of weight 0.
    rows = {"weight_B": batch["weight"]} if model.keeps_statistics else {}
    train = key_B is not None
    outputs, variables = batch_stats.apply(
        model, variables, batch[model.modality], key_B, train=train, **rows
    )
    carry_input = batch_stats.hand_over(variables, train)
    return outputs, {CARRY_INPUT: carry_input} if carry_input else {}


def _predictions(
    batch: Batch, guess_B: Array, loss_B: Array, *, classes: bool
) -> Predictions:
    return Predictions(
        indices_B=batch["index"],
        labels_B=batch["label"],
        guesses_B=guess_B,
        losses_B=loss_B,
        weights_B=batch["weight"],
        classes=classes,
    )


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """Returns the cross-entropy loss of a classifier, for labels int32 [B].

    `config`: label_smoothing, mixup_alpha, cutmix_alpha (0: off; images only). F1 and
    Matthews correlation are measured in evaluation. Logits that the batch has are used
    (see `logits_of`), except where images are mixed. Raises UserError for mixup or cutmix
    of text.
    """
    smoothing = config.label_smoothing if train else 0.0
    mixes = max(config.mixup_alpha, config.cutmix_alpha) > 0
    if mixes and model.modality != "image":
        raise UserError("objective.mixup_alpha and cutmix_alpha mix images, not text")

    def loss_fn(params, frozen, batch, key_B):
        label_B = batch["label"]
        targets_BN = smooth(label_B, model.num_classes, smoothing)
        if mixes and train:
            image_BYXC, targets_BN = _mix_batch(config, batch, targets_BN, key_B)
            batch = {**without_logits(batch), "image": image_BYXC}
        key_B = key_B if train else None
        logits_BN, carry_input = _outputs(model, params, frozen, batch, key_B)
        loss_B = cross_entropy(logits_BN, targets_BN)
        loss = Mean.of(loss_B, batch["weight"])
        correct = accuracy(logits_BN, label_B, batch["weight"])
        metrics: Metrics = {"loss": Loss.of(loss), "accuracy": correct}
        if not train:
            metrics |= confusion(logits_BN, label_B, batch["weight"])
            guess_B = jnp.argmax(logits_BN, axis=-1)
            metrics["predictions"] = _predictions(batch, guess_B, loss_B, classes=True)
        return loss.value(), metrics | carry_input

    return loss_fn


def make_regression(config: Any, model: nn.Module, train: bool) -> LossFn:
    """Returns the mean squared error of a model with one output, for labels float32 [B].

    `config` has no fields of its own. Spearman's correlation is measured in evaluation.
    Raises UserError unless `model.num_classes` is 1.
    """
    del config
    if model.num_classes != 1:
        raise UserError(
            f"objective 'regress' predicts one number: model.num_classes must be 1, not "
            f"{model.num_classes}"
        )

    def loss_fn(params, frozen, batch, key_B):
        key_B = key_B if train else None
        guess_B1, carry_input = _outputs(model, params, frozen, batch, key_B)
        guess_B, label_B = guess_B1[:, 0], batch["label"].astype(jnp.float32)
        loss_B = jnp.square(guess_B - label_B)
        loss = Mean.of(loss_B, batch["weight"])
        metrics: Metrics = {"loss": Loss.of(loss)}
        if not train:
            metrics["predictions"] = _predictions(batch, guess_B, loss_B, classes=False)
            metrics["spearman"] = Spearman(guess_B, label_B, batch["weight"])
        return loss.value(), metrics | carry_input

    return loss_fn
