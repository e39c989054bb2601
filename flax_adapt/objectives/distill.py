"""Masked modelling plus hidden-state self-distillation (Lee et al. 2023; S1).

One implementation for images and text.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt import models
from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Row, one_of
from flax_adapt.base.errors import choose
from flax_adapt.base.metrics import Loss, Mean
from flax_adapt.base.types import Array, Batch, Key, LossFn, Params
from flax_adapt.models.residual import Select
from flax_adapt.objectives import mlm, reconstruct, states, teacher

_WHITEN_EPS = 1e-5  # of torch's layer_norm, as in the official code
# (params, frozen: its "teacher" or its table of states, batch, key_B) -> Mean
Distance = Callable[[Params, Params, Batch, Key], Mean]


class MaskedObjective(NamedTuple):
    """A masked objective: its loss, and the distance of two models' predictions."""

    make_loss: Callable[[Any, nn.Module, bool], LossFn]
    make_distance: Callable[[Any, nn.Module, bool], Distance]  # of the teacher itself


MASKED = {
    "reconstruct": MaskedObjective(reconstruct.make_loss, reconstruct.make_distance),
    "mlm": MaskedObjective(mlm.make_loss, mlm.make_distance),
}


def smooth_l1(error: Array, beta: float) -> Array:
    """Returns error^2 / (2 beta) where |error| < beta, else |error| - beta / 2."""
    size = jnp.abs(error)
    return jnp.where(size < beta, jnp.square(error) / (2 * beta), size - beta / 2)


def whiten(x_BLD: Array) -> Array:
    """Returns each token's features with mean 0 and variance 1, as LayerNorm makes them."""
    centered_BLD = x_BLD - jnp.mean(x_BLD, axis=-1, keepdims=True)
    variance_BL1 = jnp.mean(jnp.square(centered_BLD), axis=-1, keepdims=True)
    return centered_BLD * jax.lax.rsqrt(variance_BL1 + _WHITEN_EPS)


def _match_states(
    config: Any, model: nn.Module, train: bool, select: Select | None
) -> Distance:
    """Returns the squared distance of hidden states, see `_encoded_distance`.

    A student that equals its teacher is at distance 0.
    """
    how = (lambda teacher_BLD: teacher_BLD, jnp.square)
    return _encoded_distance(config, model, train, select, *how)


def _match_features(
    config: Any, model: nn.Module, train: bool, select: Select | None
) -> Distance:
    """Returns the smooth L1 distance to the whitened states of the teacher.

    Feature distillation (Wei et al. 2022, arXiv 2205.14141, section 3; official code). Its
    linear projection of the student's tokens is not needed here, as student and teacher
    have the same width (ours).
    """
    error = functools.partial(smooth_l1, beta=config.beta)
    return _encoded_distance(config, model, train, select, whiten, error)


def _encoded_distance(
    config: Any,
    model: nn.Module,
    train: bool,
    select: Select | None,
    target: Callable[[Array], Array],
    error: Callable[[Array], Array],
) -> Distance:
    """Returns the distance of hidden states on the FULL unmasked input, without dropout.

    (Ours; the reference trains without any dropout.) select: the compared tokens. target:
    transforms the states of the teacher [B, L, D]. error: function of a difference. The
    teacher's states of training examples are read from its table, where `frozen` has one.
    """

    def encode(params, inputs):
        return states.encode_selected(model, params, inputs, config.layers, select)

    def encode_teacher(frozen: Params, batch: Batch) -> list[Array]:
        if not (train and teacher.TABLE in frozen):
            return encode(frozen["teacher"], batch[model.modality])
        return teacher.look_up(frozen[teacher.TABLE], batch["index"])

    def distance(params: Params, frozen: Params, batch: Batch, key_B: Key) -> Mean:
        del key_B
        inputs = batch[model.modality]
        theirs = jax.lax.stop_gradient(encode_teacher(frozen, batch))
        return states.state_distance(
            encode(params, inputs),
            [target(x_BLD) for x_BLD in theirs],
            states.layout_of(model, inputs, select),
            batch["weight"],
            config.state,
            config.reduce,
            error,
        )

    return distance


def _match_predictions(
    config: Any, model: nn.Module, train: bool, select: Select | None
) -> Distance:
    del select
    measure = MASKED[config.masked.name].make_distance(config.masked, model, train)

    def distance(params: Params, frozen: Params, batch: Batch, key_B: Key) -> Mean:
        return measure(params, frozen["teacher"], batch, key_B)

    return distance


# Which outputs of student and teacher are compared. "predictions" is an ablation of S1: its
# teacher must be the whole model, decoder or head included.
MATCHES: dict[str, Callable[[Any, nn.Module, bool, Select | None], Distance]] = {
    "states": _match_states,
    "features": _match_features,
    "predictions": _match_predictions,
}


def make_loss(
    config: Any, model: nn.Module, train: bool, one_document: bool = False
) -> LossFn:
    """Returns the loss of masked modelling with self-distillation.

        L = masked_weight * L_masked + weight * distance(student, stop_gradient(teacher))

    `config`: masked (the section of an objective), masked_weight, match, state, layers,
    reduce, beta (of "features"), weight. The parameters of the teacher are
    `frozen["teacher"]`; in training its states can be a table instead, see `teacher`. The
    reference has both weights 1, states, cls, after the last layer (its final LayerNorm
    included), sum over features. With masked_weight 0, an ablation of S1, the masked
    objective is not computed. Where CLS is compared and rows hold `one_document` each, the
    last block of student and teacher computes CLS alone: 7 % of both passes of ViT-B are
    saved.

    Raises UserError for fields that are out of range.
    """
    masked = choose("objective.masked.name", config.masked.name, MASKED)
    masked_loss = masked.make_loss(config.masked, model, train)
    checks.run(
        ROWS, states.StateComparison(config, models.num_blocks(model.config) + 1)
    )
    select = states.select_compared(config.state, model, one_document)
    measure = MATCHES[config.match](config, model, train, select)

    def loss_fn(params, frozen, batch, key_B):
        metrics, loss = {}, Loss(())
        if config.masked_weight:
            metrics = masked_loss(params, frozen, batch, key_B)[1]
            loss = metrics["loss"].times(config.masked_weight)
        distance = measure(params, frozen, batch, key_B)
        loss = loss.plus(config.weight, distance)
        return loss.value(), {**metrics, "loss": loss, "distill": distance}

    return loss_fn


# Rules of the objective "distill".
ROWS = (
    one_of("objective.match", lambda subject: subject.objective.match, MATCHES),
    *states.STATE_ROWS,
    one_of("objective.reduce", lambda subject: subject.objective.reduce, states.REDUCE),
    Row(
        lambda subject: 0 < subject.objective.beta < math.inf,
        "objective.beta={0.objective.beta} must be above 0, and finite",
    ),
    states.weight_row("masked_weight"),
    states.weight_row("weight"),
    Row(
        lambda subject: subject.objective.teacher_cache_bytes >= 0,
        "objective.teacher_cache_bytes={0.objective.teacher_cache_bytes} must be at least "
        "0; 0: the teacher runs in every step",
    ),
)
CHECKS = (Check(lambda at: states.state_comparisons(at, "distill"), ROWS),)
