"""The pre-norm block of ModernBERT (Warner et al. 2024): rotary positions, local attention."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from flax_adapt.base import placement
from flax_adapt.base.types import Array, Key, Text
from flax_adapt.models import layers, residual
from flax_adapt.models.architecture import LastBlock
from flax_adapt.models.layers import NORMAL, Dtype
from flax_adapt.models.residual import Select
from flax_adapt.models.textual import rotary
from flax_adapt.models.textual.config import BertConfig


class Sight(NamedTuple):
    """What the tokens of a batch see, for all blocks.

    sees_BLM: token l attends to token m in a global block. near_BLM: the same of a local
    one. positions_BL: in the own document.
    """

    sees_BLM: Array
    near_BLM: Array
    positions_BL: Array


def make_sight(text: Text, sees_BLM: Array, reach: int) -> Sight:
    """Returns the `Sight`; reach: how far a local block sees, to either side.

    Positions count within a document, so that a packed one sees what it would see alone.
    """
    at_BL = text.positions_BL
    near_BLM = abs(at_BL[:, :, None] - at_BL[:, None, :]) <= reach
    near_BLM = placement.place("inputs", sees_BLM & near_BLM)
    return Sight(sees_BLM, near_BLM, at_BL)


class PreNormBlock(nn.Module):
    """Pre-norm transformer block; with `resized` it ends in another width D.

    is_local: whether tokens see their neighbours alone, with positions of another theta;
    an array where blocks of both kinds are one loop (`blocks`). bare: no norm before the
    attention, as in ModernBERT's first block, which follows on a norm.
    """

    config: BertConfig
    dropout: float
    drop_path: float | Array
    dtype: Dtype
    resized: LastBlock | None
    is_local: bool | Array
    bare: bool

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        sight: Sight,
        key_B: Key | None,
        select: Select | None = None,
    ) -> Array:
        """Returns the state x_BLD of the selected tokens; None: of all."""
        config = self.config
        how = (config.layer_norm_eps, self.dtype, 0, config.biases)
        norm = functools.partial(layers.LayerNorm, *how)
        attention = layers.Attention(config, NORMAL, self.dtype, name="attention")
        width = self.resized.width if self.resized else config.width
        mlp = layers.MLP(config, width, NORMAL, self.dtype, name="mlp")
        drawn = residual.Drawn(x_BLD.shape[1], select)
        rates = (self.dropout, self.drop_path)
        drop = functools.partial(residual.drop_branch, rates, key_B, drawn=drawn)
        into_BLD = x_BLD if self.bare else norm(name="norm1")(x_BLD)
        sees_BLM, turn_BLK = self._look(sight)
        added_BLD = attention(into_BLD, sees_BLM, select, turn_BLK)
        x_BLD = residual.take(select, x_BLD) + drop(0, added_BLD)
        x_BLD = placement.place("states", x_BLD)
        around_BLD = layers.shortcut(x_BLD, self.resized, self.dtype)
        x_BLD = around_BLD + drop(1, mlp(norm(name="norm2")(x_BLD)))
        x_BLD = placement.place("states", x_BLD)
        self.sow(layers.SUMS, "sum", x_BLD)
        return x_BLD

    def _look(self, sight: Sight) -> tuple[Array, Array]:
        """Returns the mask of this block, and what turns queries and keys."""
        own, head_dim = self.config.own, self.config.width // self.config.heads
        thetas = own.global_theta, own.local_theta
        whole_J, near_J = (rotary.frequencies(theta, head_dim) for theta in thetas)
        options: tuple[Any, Any] = (sight.near_BLM, near_J), (sight.sees_BLM, whole_J)
        if isinstance(self.is_local, bool):
            sees_BLM, theta_J = options[0] if self.is_local else options[1]
        else:
            sees_BLM, theta_J = (
                jnp.where(self.is_local, *both) for both in zip(*options, strict=True)
            )
        return sees_BLM, rotary.turns(sight.positions_BL, jnp.asarray(theta_J))
