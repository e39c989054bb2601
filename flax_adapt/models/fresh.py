"""Random initial parameters of a model of any kind."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base.types import Key, Params, Text
from flax_adapt.models import batch_stats
from flax_adapt.models.contrast import Contrast, TextContrast
from flax_adapt.models.mae import MAE
from flax_adapt.models.resnet import ResNetContrast
from flax_adapt.models.text import MaskedLM, TextModel


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: nn.Module, key: Key) -> Params:
    """Returns random initial parameters, float32; the forward pass is traced, never run.

    For a model with batch norm: the tree as it is stored, see `batch_stats`.
    """
    return batch_stats.stored_tree(model.init(key, *_dummy_arguments(model)))


def _dummy_arguments(model: nn.Module) -> tuple[Any, ...]:
    """Returns the smallest inputs that a model takes."""
    config, weight_B = model.config, jnp.ones(1)
    if isinstance(model, TextModel):
        ids = jnp.zeros((1, 1), jnp.int32)
        row = Text(*[ids] * len(Text._fields))
        if isinstance(model, TextContrast):
            return row, None, weight_B
        return (row, ids, None) if isinstance(model, MaskedLM) else (row, None)
    image = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    if isinstance(model, Contrast | ResNetContrast):
        return image, None, weight_B
    if isinstance(model, MAE):
        noise_BL = jnp.zeros((1, config.num_patches))
        return image, noise_BL, None, 0.0  # any hidden_ratio will do
    return image, None
