"""Masked modelling plus hidden-state self-distillation (Lee et al. 2023; METHODS S1).

One implementation for images and text.
"""

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
    """The first token of every document (packed rows hold several), or of the image."""
    return x_BLD, layout.first_BL


def _tokens(x_BLD: Array, layout: Layout) -> tuple[Array, Array]:
    return x_BLD, layout.segments_BL > 0


def _mean(x_BLD: Array, layout: Layout) -> tuple[Array, Array]:
    """What pooling by "mean" gives each document, in the place of its first token."""
    segments_BL = layout.segments_BL
    same_BLM = segments_BL[:, :, None] == segments_BL[:, None]
    counts_BLM = (same_BLM & layout.pooled_BL[:, None]).astype(x_BLD.dtype)
    count_BL1 = jnp.sum(counts_BLM, axis=-1, keepdims=True)
    return counts_BLM @ x_BLD / jnp.maximum(count_BL1, 1), layout.first_BL


# What of the token states is compared: (states [B, L, D], true where they count [B, L]).
STATES: dict[str, Callable[[Array, Layout], tuple[Array, Array]]] = {
    "cls": _cls,
    "tokens": _tokens,
    "mean": _mean,
}
REDUCE = {"sum": jnp.sum, "mean": jnp.mean}
# (params, teacher, batch, key_B) -> Mean
Distance = Callable[[Params, Params, Batch, Key], Mean]


class Masked(NamedTuple):
    """A masked objective: its loss, and the distance of two models' predictions."""

    make_loss: Callable[[Any, nn.Module, bool], LossFn]
    make_distance: Callable[[Any, nn.Module, bool], Distance]


MASKED = {
    "reconstruct": Masked(reconstruct.make_loss, reconstruct.make_distance),
    "mlm": Masked(mlm.make_loss, mlm.make_distance),
}


def state_distance(
    student: Sequence[Array],
    teacher: Sequence[Array],
    layout: Layout,
    weight_B: Array,
    state: str,
    reduce: str,
) -> Mean:
    """Squared distance, reduced over features as asked, a mean over what counts.

    Averaged over the layers given (ours; the reference has one). h = (1, 2),
    h' = (3, 5), "sum": 4 + 9 = 13.
    """
    select, over_features = STATES[state], REDUCE[reduce]
    total = Mean(jnp.float32(0), jnp.float32(0))
    for x_BLD, y_BLD in zip(student, teacher, strict=True):
        (x_BLD, counts_BL), (y_BLD, _) = select(x_BLD, layout), select(y_BLD, layout)
        error_BL = over_features(jnp.square(x_BLD - y_BLD), axis=-1)
        weight_BL = jnp.where(counts_BL, weight_B[:, None], 0)
        total = total.merge(Mean.of(error_BL, weight_BL))
    return total


class Compared(NamedTuple):
    """An objective that compares states, and how many the `encode` of its model gives."""

    objective: Any
    num_states: int

    @property
    def outside(self) -> list[int]:
        """Those of `objective.layers` that are no state."""
        states = range(-self.num_states, self.num_states)
        return [layer for layer in self.objective.layers if layer not in states]


def compared(at: Context, name: str) -> list[Compared]:
    """Returns the subject of rows about the objective `name`, if the stage has it."""
    if at.section.objective.name != name:
        return []
    config = ConfigDict(models.of_stage(at.config.model, at.section.model))
    return [Compared(at.section.objective, models.num_blocks(config) + 1)]


def weight_row(field: str) -> Row:
    """Returns the row of a weight of a term of the loss."""
    return Row(
        lambda subject: 0 <= subject.objective[field] < math.inf,
        lambda subject: (
            f"objective.{field}={subject.objective[field]} must be at least 0, and finite"
        ),
    )


# What `state_distance` compares: `objective.state` of the states `objective.layers`.
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
    """On the FULL unmasked input, without dropout: a student that is its teacher is at
    distance 0 (ours; the reference trains without any).
    """
    del train

    def states(params, inputs):
        hidden = model.apply({"params": params}, inputs, None, method="encode")
        return [hidden[layer].astype(jnp.float32) for layer in config.layers]

    def distance(params: Params, teacher: Params, batch: Batch, key_B: Key) -> Mean:
        del key_B
        inputs = batch[model.modality]
        return state_distance(
            states(params, inputs),
            jax.lax.stop_gradient(states(teacher, inputs)),
            model.layout(inputs),
            batch["weight"],
            config.state,
            config.reduce,
        )

    return distance


def _match_predictions(config: Any, model: nn.Module, train: bool) -> Distance:
    return MASKED[config.masked.name].make_distance(config.masked, model, train)


# What of the student is to be near the teacher's. Predictions: an ablation of S1, for
# which the teacher must be the whole model, decoder or head included.
MATCHES: dict[str, Callable[[Any, nn.Module, bool], Distance]] = {
    "states": _match_states,
    "predictions": _match_predictions,
}


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """`config`: masked (an objective), masked_weight, match, state, layers, reduce, weight.

    L = masked_weight * L_masked + weight * distance(student, stop_gradient(teacher)). The
    teacher is `frozen["teacher"]`. The defaults of the reference: both weights 1, states,
    cls, after the last layer (its final LayerNorm included), sum over features.
    masked_weight 0, an ablation of S1: the masked objective is left out.
    """
    masked = choose("objective.masked.name", config.masked.name, MASKED)
    masked_loss = masked.make_loss(config.masked, model, train)
    checks.run(ROWS, Compared(config, models.num_blocks(model.config) + 1))
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
    weight_row("masked_weight"),
    weight_row("weight"),
)
CHECKS = (Check(lambda at: compared(at, "distill"), ROWS),)
