"""Pooling of token states to the features of an image."""

import jax.numpy as jnp

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array
from flax_adapt.models.architecture import ViTConfig

# The pooling of DeiT's two heads: CLS and the distillation token, side by side.
CLS_DIST = "cls_dist"


def pool(x_BLD: Array, pooling: str, num_prefix: int = 1) -> Array:
    """Returns x_BD: the CLS state, the mean of the patch states, or both side by side.

    num_prefix: the number of tokens before the patches. "cls_mean" has 2 D features.
    """
    return POOLING[pooling](x_BLD, num_prefix)


def _first(x_BLD: Array, num_prefix: int) -> Array:
    del num_prefix
    return x_BLD[:, 0]


def _mean_of_patches(x_BLD: Array, num_prefix: int) -> Array:
    return jnp.mean(x_BLD[:, num_prefix:], axis=1)


def _both(x_BLD: Array, num_prefix: int) -> Array:
    both = x_BLD[:, 0], _mean_of_patches(x_BLD, num_prefix)
    return jnp.concatenate(both, axis=-1)


def _with_distilled(x_BLD: Array, num_prefix: int) -> Array:
    del num_prefix
    return jnp.concatenate([x_BLD[:, 0], x_BLD[:, 1]], axis=-1)


# The states are those after the final LayerNorm, but for "mean_norm", where it follows
# the mean: Facebook's fine-tuned MAE and timm's global_pool="avg" (both: fc_norm).
# "cls_mean" is DINOv2's own (Oquab et al. 2023, its linear probe of one layer). "cls_dist",
# CLS and the distillation token, is that of DeiT's two heads, whose logits are averaged.
POOLING = {
    "cls": _first,
    "mean": _mean_of_patches,
    "mean_norm": _mean_of_patches,
    "cls_mean": _both,
    CLS_DIST: _with_distilled,
}


def check_pooling(config: ViTConfig, pooling: str) -> None:
    """Raises UserError for the pooling of a distillation token that the model has not."""
    if pooling == CLS_DIST and not config.own.distilled:
        raise UserError(
            f"pooling {pooling!r} is of models with a distillation token (distilled DeiT)"
        )
