"""Masked modelling plus hidden-state self-distillation (Lee et al. 2023; S1).

One implementation for images and text.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from flax_adapt import models
from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Context, Row, one_of
from flax_adapt.base.errors import choose
from flax_adapt.base.metrics import Loss, Mean
from flax_adapt.base.types import Array, Batch, Key, Layout, LossFn, Params
from flax_adapt.objectives import mlm, reconstruct


def _cls(x_BLD: Array, layout: Layout) -> tuple[Array, Array]:
    """Selects the first token of every document (packed rows hold several), or image."""
    return x_BLD, layout.first_BL


def _tokens(x_BLD: Array, layout: Layout) -> tuple[Array, Array]:
    return x_BLD, layout.segments_BL > 0


def _mean(x_BLD: Array, layout: Layout) -> tuple[Array, Array]:
    """Selects, in the place of each document's first token, its state pooled by "mean"."""
    segments_BL = layout.segments_BL
    same_BLM = segments_BL[:, :, None] == segments_BL[:, None]
    counts_BLM = (same_BLM & layout.pooled_BL[:, None]).astype(x_BLD.dtype)
    count_BL1 = jnp.sum(counts_BLM, axis=-1, keepdims=True)
    return counts_BLM @ x_BLD / jnp.maximum(count_BL1, 1), layout.first_BL


# Which states are compared: (states, layout) -> (states [B, L, D], bool [B, L], true where
# a state is compared).
STATES: dict[str, Callable[[Array, Layout], tuple[Array, Array]]] = {
    "cls": _cls,
    "tokens": _tokens,
    "mean": _mean,
}
REDUCE = {"sum": jnp.sum, "mean": jnp.mean}
_WHITEN_EPS = 1e-5  # of torch's layer_norm, as in the official code
# (params, parameters of the teacher, batch, key_B) -> Mean
Distance = Callable[[Params, Params, Batch, Key], Mean]


class MaskedObjective(NamedTuple):
    """A masked objective: its loss, and the distance of two models' predictions."""

    make_loss: Callable[[Any, nn.Module, bool], LossFn]
    make_distance: Callable[[Any, nn.Module, bool], Distance]


MASKED = {
    "reconstruct": MaskedObjective(reconstruct.make_loss, reconstruct.make_distance),
    "mlm": MaskedObjective(mlm.make_loss, mlm.make_distance),
}


def state_distance(
    student: Sequence[Array],
    teacher: Sequence[Array],
    layout: Layout,
    weight_B: Array,
    state: str,
    reduce: str,
    error: Callable[[Array], Array] = jnp.square,
) -> Mean:
    """Returns the mean distance of the states of student and teacher.

    student, teacher: states [B, L, D] of each compared layer. state: a key of STATES,
    selects tokens. reduce: a key of REDUCE, reduces over features. The mean is over the
    selected tokens, weighted by weight_B, and over the layers (ours; the reference has
    one). error: of a difference. h = (1, 2), h' = (3, 5), "sum", squares: 4 + 9 = 13.
    """
    select, over_features = STATES[state], REDUCE[reduce]
    total = Mean(jnp.float32(0), jnp.float32(0))
    for x_BLD, y_BLD in zip(student, teacher, strict=True):
        (x_BLD, counts_BL), (y_BLD, _) = select(x_BLD, layout), select(y_BLD, layout)
        error_BL = over_features(error(x_BLD - y_BLD), axis=-1)
        weight_BL = jnp.where(counts_BL, weight_B[:, None], 0)
        total = total.merge(Mean.of(error_BL, weight_BL))
    return total


def smooth_l1(error: Array, beta: float) -> Array:
    """Returns error^2 / (2 beta) where |error| < beta, else |error| - beta / 2."""
    size = jnp.abs(error)
    return jnp.where(size < beta, jnp.square(error) / (2 * beta), size - beta / 2)


def whiten(x_BLD: Array) -> Array:
    """Returns each token's features with mean 0 and variance 1, as LayerNorm makes them."""
    centered_BLD = x_BLD - jnp.mean(x_BLD, axis=-1, keepdims=True)
    variance_BL1 = jnp.mean(jnp.square(centered_BLD), axis=-1, keepdims=True)
    return centered_BLD * jax.lax.rsqrt(variance_BL1 + _WHITEN_EPS)


class StateComparison(NamedTuple):
    """An objective that compares states, and how many the model's `encode` returns."""

    objective: Any
    num_states: int

    @property
    def outside(self) -> list[int]:
        """The entries of `objective.layers` that are no index of a state."""
        states = range(-self.num_states, self.num_states)
        return [layer for layer in self.objective.layers if layer not in states]


def state_comparisons(at: Context, name: str) -> list[StateComparison]:
    """Returns the subject of rows about the objective `name`, [] if the stage has another."""
    if at.section.objective.name != name:
        return []
    config = ConfigDict(models.of_stage(at.config.model, at.section.model))
    return [StateComparison(at.section.objective, models.num_blocks(config) + 1)]


def weight_row(field: str) -> Row:
    """Returns the rule that `objective.FIELD`, the weight of a loss term, is in [0, inf)."""
    return Row(
        lambda subject: 0 <= subject.objective[field] < math.inf,
        lambda subject: (
            f"objective.{field}={subject.objective[field]} must be at least 0, and finite"
        ),
    )


# Rules of the fields `objective.state` and `objective.layers`, see `state_distance`.
STATE_ROWS = (
    one_of("objective.state", lambda subject: subject.objective.state, STATES),
    Row(
        lambda subject: subject.objective.layers and not subject.outside,
        lambda subject: (
            f"objective.layers={tuple(subject.objective.layers)} must name states 0 to "
            f"{subject.num_states - 1} (or negative, -1 = the last)"
        ),
    ),
)


def _match_states(config: Any, model: nn.Module, train: bool) -> Distance:
    """Returns the squared distance of hidden states, see `_encoded_distance`.

    A student that equals its teacher is at distance 0.
    """
    return _encoded_distance(config, model, lambda teacher_BLD: teacher_BLD, jnp.square)


def _match_features(config: Any, model: nn.Module, train: bool) -> Distance:
    """Returns the smooth L1 distance to the whitened states of the teacher.

    Feature distillation (Wei et al. 2022, arXiv 2205.14141, section 3; official code). Its
    linear projection of the student's tokens is not needed here, as student and teacher
    have the same width (ours).
    """
    error = functools.partial(smooth_l1, beta=config.beta)
    return _encoded_distance(config, model, whiten, error)


def _encoded_distance(
    config: Any,
    model: nn.Module,
    target: Callable[[Array], Array],
    error: Callable[[Array], Array],
) -> Distance:
    """Returns the distance of hidden states on the FULL unmasked input, without dropout.

    (Ours; the reference trains without any dropout.) target: transforms
    the states of the teacher [B, L, D]. error: function of a difference.
    """

    def states(params, inputs):
        hidden = model.apply({"params": params}, inputs, None, method="encode")
        return [hidden[layer].astype(jnp.float32) for layer in config.layers]

    def distance(params: Params, teacher: Params, batch: Batch, key_B: Key) -> Mean:
        del key_B
        inputs = batch[model.modality]
        return state_distance(
            states(params, inputs),
            [target(x) for x in jax.lax.stop_gradient(states(teacher, inputs))],
            model.layout(inputs),
            batch["weight"],
            config.state,
            config.reduce,
            error,
        )

    return distance


def _match_predictions(config: Any, model: nn.Module, train: bool) -> Distance:
    return MASKED[config.masked.name].make_distance(config.masked, model, train)


# Which outputs of student and teacher are compared. "predictions" is an ablation of S1: its
# teacher must be the whole model, decoder or head included.
MATCHES: dict[str, Callable[[Any, nn.Module, bool], Distance]] = {
    "states": _match_states,
    "features": _match_features,
    "predictions": _match_predictions,
}


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """Returns the loss of masked modelling with self-distillation.

        L = masked_weight * L_masked + weight * distance(student, stop_gradient(teacher))

    `config`: masked (the section of an objective), masked_weight, match, state, layers,
    reduce, beta (of "features"), weight. The parameters of the teacher are
    `frozen["teacher"]`. The reference has both weights 1, states, cls, after the last layer
    (its final LayerNorm included), sum over features. With
    masked_weight 0, an ablation of S1, the masked objective is not computed.
    Raises UserError for fields that are out of range.
    """
    masked = choose("objective.masked.name", config.masked.name, MASKED)
    masked_loss = masked.make_loss(config.masked, model, train)
    checks.run(ROWS, StateComparison(config, models.num_blocks(model.config) + 1))
    measure = MATCHES[config.match](config, model, train)

    def loss_fn(params, frozen, batch, key_B):
        metrics, loss = {}, Loss(())
        if config.masked_weight:
            metrics = masked_loss(params, frozen, batch, key_B)[1]
            loss = metrics["loss"].times(config.masked_weight)
        distance = measure(params, frozen["teacher"], batch, key_B)
        loss = loss.plus(config.weight, distance)
        return loss.value(), {**metrics, "loss": loss, "distill": distance}

    return loss_fn


# Rules of the objective "distill".
ROWS = (
    one_of("objective.match", lambda subject: subject.objective.match, MATCHES),
    *STATE_ROWS,
    one_of("objective.reduce", lambda subject: subject.objective.reduce, REDUCE),
    Row(
        lambda subject: 0 < subject.objective.beta < math.inf,
        "objective.beta={0.objective.beta} must be above 0, and finite",
    ),
    weight_row("masked_weight"),
    weight_row("weight"),
)
CHECKS = (Check(lambda at: state_comparisons(at, "distill"), ROWS),)
