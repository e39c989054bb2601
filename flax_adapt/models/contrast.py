"""Encoders with the heads that contrast compares representations behind.

The heads of MoCo-v3 (Chen et al. 2021, official code): a projector, then a predictor for
the queries alone. Without batch norm, the MLP head of MoCo-v2 (Chen et al. 2020). They
are dropped after training: nothing is kept for an inference, such as running statistics.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.errors import UserError
from flax_adapt.models import layers, vit
from flax_adapt.models.bert import Mix
from flax_adapt.models.text import POOLING, TextModel
from flax_adapt.types import Array, Key, Text

EPS = 1e-5  # torch.nn.BatchNorm1d
# torch's Linear, as in the official code: uniform in +-1 / sqrt(inputs).
KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """The heads: `layers` of width `hidden`, the last of width `width`.

    predictor_layers: as many for the predictor, from `width` to `width`; 0: there is
    none. batch_norm: after every layer, which then has no bias.
    """

    layers: int
    hidden: int
    width: int
    predictor_layers: int
    batch_norm: bool

    def __post_init__(self):
        least = dict(layers=1, hidden=1, width=1, predictor_layers=0)
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UserError(
                    f"model.projector.{name}={getattr(self, name)} must be at least "
                    f"{minimum}"
                )


def batch_normalize(x_BD: Array, weight_B: Array) -> Array:
    """Centres and scales every feature over the rows of the GLOBAL batch that count.

    x_BD float32. weight_B float32, 0: does not count, but comes out transformed like the
    others. The variance is biased. Column (1, 3), both count: (-1, 1).
    """
    weight_B1 = weight_B[:, None]
    count = jnp.maximum(jnp.sum(weight_B), 1)
    x_BD = x_BD - jnp.sum(x_BD * weight_B1, axis=0, keepdims=True) / count
    variance_1D = jnp.sum(jnp.square(x_BD) * weight_B1, axis=0, keepdims=True) / count
    return x_BD * jax.lax.rsqrt(variance_1D + EPS)


class BatchNorm(nn.Module):
    """`batch_normalize`, then scale and bias if `affine`."""

    affine: bool

    @nn.compact
    def __call__(self, x_BD: Array, weight_B: Array) -> Array:
        x_BD = batch_normalize(x_BD, weight_B)
        if not self.affine:
            return x_BD
        shape = x_BD.shape[-1:]
        scale_D = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias_D = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return x_BD * scale_D[None] + bias_D[None]


class Head(nn.Module):
    """An MLP with ReLU, float32; its last batch norm has no scale and bias."""

    depth: int
    config: ProjectorConfig

    @nn.compact
    def __call__(self, x_BD: Array, weight_B: Array) -> Array:
        """Returns x_BD of `config.width`; with a depth of 0 what it was given."""
        config = self.config
        for number in range(self.depth):
            last = number == self.depth - 1
            width = config.width if last else config.hidden
            options = (width, not config.batch_norm, KERNEL, jnp.float32)
            x_BD = layers.Dense(*options, name=f"layer_{number}")(x_BD)
            if config.batch_norm:
                x_BD = BatchNorm(not last, name=f"norm_{number}")(x_BD, weight_B)
            if not last:
                x_BD = nn.relu(x_BD)
        return x_BD


def make_heads(config: ProjectorConfig) -> tuple[Head, Head]:
    """Returns what is to be kept as `self.projector` and `self.predictor`."""
    return Head(config.layers, config), Head(config.predictor_layers, config)


class Contrast(vit.ImageModel):
    """A ViT, pooling after the final LayerNorm, and the heads."""

    pooling: str
    projector_config: ProjectorConfig

    def setup(self) -> None:
        self.encoder = self.make_encoder(vit.VIT)
        self.projector, self.predictor = make_heads(self.projector_config)

    def __call__(self, image_BYXC: Array, key_B: Key | None, weight_B: Array) -> Array:
        """Returns query_BD, float32, not normalised; `weight_B` 0: does not count."""
        return self.predictor(self.project(image_BYXC, key_B, weight_B), weight_B)

    def project(self, image_BYXC: Array, key_B: Key | None, weight_B: Array) -> Array:
        """Returns key_BD, float32: what comes out before the predictor."""
        x_BD = self.embed(image_BYXC, self.pooling, key_B)
        return self.projector(x_BD, weight_B)


class TextContrast(TextModel):
    """A text encoder, pooling, and the heads; rows hold one document each."""

    pooling: str
    projector_config: ProjectorConfig

    def setup(self) -> None:
        self.encoder = self.make_encoder()
        self.projector, self.predictor = make_heads(self.projector_config)

    def __call__(
        self, text: Text, key_B: Key | None, weight_B: Array, mix: Mix | None = None
    ) -> Array:
        """Returns query_BD, float32, not normalised; `weight_B` 0: does not count."""
        return self.predictor(self.project(text, key_B, weight_B, mix), weight_B)

    def project(
        self, text: Text, key_B: Key | None, weight_B: Array, mix: Mix | None = None
    ) -> Array:
        """Returns key_BD, float32: what comes out before the predictor.

        mix: see `bert.Encoder`; the segments of the text are then those of the mixture.
        """
        x_BLD = self.encoder(text, key_B, mix)[-1].astype(jnp.float32)
        pooled_BD = POOLING[self.pooling](x_BLD, text.segments_BL)
        return self.projector(pooled_BD, weight_B)
