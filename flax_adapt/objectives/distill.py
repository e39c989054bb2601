"""Masked auto-encoding plus hidden-state self-distillation (Lee et al. 2023; METHODS S1)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flax_adapt import keys
from flax_adapt.errors import UserError, choose
from flax_adapt.metrics import Mean
from flax_adapt.objectives import reconstruct
from flax_adapt.types import Array, LossFn

# What of the token states (CLS first) is compared; every entry returns [B, tokens, D].
STATES: dict[str, Callable[[Array], Array]] = {
    "cls": lambda x_BLD: x_BLD[:, :1],
    "tokens": lambda x_BLD: x_BLD,
    "mean": lambda x_BLD: jnp.mean(x_BLD[:, 1:], axis=1, keepdims=True),
}
REDUCE = {"sum": jnp.sum, "mean": jnp.mean}
MASKED = {"reconstruct": reconstruct.make_loss}

_UNMASKED = 0xD15  # dropout of the unmasked pass is drawn apart from the masked one's


def state_distance(
    student: Sequence[Array], teacher: Sequence[Array], state: str, reduce: str
) -> Array:
    """Returns distance_B: squared distance, reduced over features as asked.

    Averaged over tokens and over the layers given (ours; the reference has one of
    each). h = (1, 2), h' = (3, 5), "sum": 4 + 9 = 13.
    """
    select, over_features = STATES[state], REDUCE[reduce]
    distances_B = [
        jnp.mean(over_features(jnp.square(select(x) - select(y)), axis=-1), axis=-1)
        for x, y in zip(student, teacher, strict=True)
    ]
    return sum(distances_B[1:], start=distances_B[0]) / len(distances_B)


def _check(config: Any, num_states: int) -> None:
    choose("objective.state", config.state, STATES)
    choose("objective.reduce", config.reduce, REDUCE)
    outside = [i for i in config.layers if not -num_states <= i < num_states]
    if outside or not config.layers:
        raise UserError(
            f"objective.layers={tuple(config.layers)} must name states 0 to "
            f"{num_states - 1} (or negative, -1 = after the final LayerNorm)"
        )


def make_loss(config: Any, model: nn.Module, train: bool) -> LossFn:
    """`config`: masked (an objective), state, layers, reduce, weight.

    L = L_masked + weight * distance(student, stop_gradient(teacher)), both on the FULL
    unmasked image; the teacher is `frozen["teacher"]` and has no dropout. The defaults
    of the reference: cls, after the final LayerNorm, sum over features, weight 1.
    """
    masked = choose("objective.masked.name", config.masked.name, MASKED)
    masked_loss = masked(config.masked, model, train)
    _check(config, model.config.depth + 1)

    def states(params, image_BYXC, key_B):
        hidden = model.apply({"params": params}, image_BYXC, key_B, method="encode")
        return [hidden[layer].astype(jnp.float32) for layer in config.layers]

    def loss_fn(params, frozen, batch, key_B):
        loss, metrics = masked_loss(params, frozen, batch, key_B)
        student_key_B = keys.fold(key_B, _UNMASKED) if train else None
        student = states(params, batch["image"], student_key_B)
        teacher = jax.lax.stop_gradient(states(frozen["teacher"], batch["image"], None))
        distance = Mean.of(
            state_distance(student, teacher, config.state, config.reduce),
            batch["weight"],
        )
        loss = loss + config.weight * distance.value()
        total = Mean(loss * distance.count, distance.count)
        return loss, {**metrics, "loss": total, "distill": distance}

    return loss_fn
