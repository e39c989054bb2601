"""LayerScale: a learned scale of each feature that a residual branch adds."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flax_adapt.base.types import Array


class LayerScale(nn.Module):
    """x * scale on the last axis (Touvron et al. 2021); `scale` is float32, with its gradient.

    At first it is one, and changes nothing. Published models were trained from 1e-5 on.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        shape = x_BLD.shape[-1:]
        scale_D = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        scale_BLD = jnp.broadcast_to(scale_D[None, None], x_BLD.shape)
        return x_BLD * scale_BLD.astype(self.dtype)
