"""Masked modelling plus hidden-state self-distillation (Lee et al. 2023; METHODS S1).

One implementation for images and text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt import models
from flax_adapt.errors import UserError, choose
from flax_adapt.metrics import Loss, Mean
from flax_adapt.objectives import mlm, reconstruct
from flax_adapt.types import Array, Layout, LossFn


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
MASKED = {"reconstruct": reconstruct.make_loss, "mlm": mlm.make_loss}


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


def _check(config: Any, num_states: int) -> None:
    choose("objective.state", config.state, STATES)
    choose("objective.reduce", config.reduce, REDUCE)
    outside = [i for i in config.layers if not -num_states <= i < num_states]
    if outside or not config.layers:
        raise UserError(
            f"objective.layers={tuple(config.layers)} must name states 0 to "
            f"{num_states - 1} (or negative, -1 = the last)"
        )


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """`config`: masked (an objective), state, layers, reduce, weight.

    L = L_masked + weight * distance(student, stop_gradient(teacher)), both on the FULL
    unmasked input, without dropout: a student that is its teacher is at distance 0 (ours;
    the reference trains without any). The teacher is `frozen["teacher"]`. The defaults of
    the reference: cls, after the last layer (its final LayerNorm included), sum over
    features, weight 1.
    """
    masked = choose("objective.masked.name", config.masked.name, MASKED)
    masked_loss = masked(config.masked, model, train)
    _check(config, models.num_blocks(model.config) + 1)

    def states(params, inputs):
        hidden = model.apply({"params": params}, inputs, None, method="encode")
        return [hidden[layer].astype(jnp.float32) for layer in config.layers]

    def loss_fn(params, frozen, batch, key_B):
        inputs = batch[model.modality]
        metrics = masked_loss(params, frozen, batch, key_B)[1]
        distance = state_distance(
            states(params, inputs),
            jax.lax.stop_gradient(states(frozen["teacher"], inputs)),
            model.layout(inputs),
            batch["weight"],
            config.state,
            config.reduce,
        )
        loss: Loss = metrics["loss"].plus(config.weight, distance)
        return loss.value(), {**metrics, "loss": loss, "distill": distance}

    return loss_fn
