"""Heads on an encoder that serve training alone, and the linear classifier.

The heads are those of MoCo-v3 (Chen et al. 2021, official code): a projector, then a
predictor for the queries alone. Without batch norm they are the MLP head of MoCo-v2 (Chen
et al. 2020). They are dropped after training, so their batch norm has no running
statistics. That of a linear probe has its own.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base import placement
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array, Key
from flax_adapt.models import layers
from flax_adapt.models.batch_norm import RunningBatchNorm
from flax_adapt.models.visual.pooling import CLS_DIST

EPS = 1e-5  # torch.nn.BatchNorm1d
# Of a linear probe (He et al. 2022, official code, main_linprobe.py), and torch's own.
PROBE_EPS, PROBE_MOMENTUM = 1e-6, 0.1
# torch's Linear, as in the official code: uniform in +-1 / sqrt(inputs).
KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """Sizes of the heads; raises UserError for one that is too small.

    layers: number of layers of the projector, of width `hidden`, the last of width
    `width`; 0: no projector. predictor_layers: the same of the predictor, whose output is
    as wide as its input; 0: no predictor. batch_norm: whether batch norm follows every
    layer, which then has no bias.
    """

    layers: int
    hidden: int
    width: int
    predictor_layers: int
    batch_norm: bool

    def __post_init__(self):
        least = dict(layers=0, hidden=1, width=1, predictor_layers=0)
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UserError(
                    f"model.projector.{name}={getattr(self, name)} must be at least "
                    f"{minimum}"
                )


def batch_normalize(x_BD: Array, weight_B: Array) -> Array:
    """Returns x_BD with each feature normalised over the counted rows of the GLOBAL batch.

    x_BD: float32. weight_B: float32; a row of weight 0 does not count, but is normalised
    like the others. The variance is biased. Example: a column (1, 3), of which both rows
    count, becomes (-1, 1).
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
        """Returns x_BD; with a depth of 0 it is the input."""
        config = self.config
        end = config.width if config.layers else x_BD.shape[-1]
        for number in range(self.depth):
            last = number == self.depth - 1
            width = end if last else config.hidden
            options = (width, not config.batch_norm, KERNEL, jnp.float32)
            x_BD = layers.Dense(*options, name=f"layer_{number}")(x_BD)
            x_BD = placement.place("pooled", x_BD)
            if config.batch_norm:
                x_BD = BatchNorm(not last, name=f"norm_{number}")(x_BD, weight_B)
            if not last:
                x_BD = nn.relu(x_BD)
        return x_BD


def make_heads(config: ProjectorConfig) -> tuple[Head, Head]:
    """Returns (projector, predictor), which a module stores under these names."""
    return Head(config.layers, config), Head(config.predictor_layers, config)


def make_projector(config: ProjectorConfig | None) -> Head | None:
    """Returns the projector between features and classifier; None where there is none.

    Raises UserError for one with batch norm.
    """
    if config is None:
        return None
    if config.batch_norm:
        raise UserError(
            "model.projector.batch_norm must be False for a classifier: what an example is "
            "taken for must not depend on its batch"
        )
    return Head(config.layers, config)


def project(projector: Head | None, x_BD: Array) -> Array:
    """Returns the features x_BD after the projector, which may be None."""
    if projector is None:
        return x_BD
    return projector(x_BD, jnp.ones(len(x_BD), jnp.float32))


def make_norm(head_norm: bool) -> RunningBatchNorm | None:
    """Returns the batch norm of a linear probe, without scale and bias, or None."""
    if not head_norm:
        return None
    return RunningBatchNorm(PROBE_EPS, PROBE_MOMENTUM, False, jnp.float32)


def normalize(
    norm: RunningBatchNorm | None,
    x_BD: Array,
    key_B: Key | None,
    weight_B: Array | None,
) -> Array:
    """Returns x_BD, float32, after the batch norm of a linear probe, which may be None.

    In training, that is with keys, the moments are those of the rows that weight_B
    counts; otherwise they are the running ones.
    """
    if norm is None:
        return x_BD
    rows_B = None if key_B is None else weight_B
    return norm(x_BD[:, None, None], rows_B)[:, 0, 0]


class LinearClassifier(nn.Module):
    """The last layers of a transformer classifier: one linear head in float32.

    Two parts before the head serve training alone: a projector (Bordes et al.
    2023), and with `head_norm` the batch norm of a linear probe, right before the head.
    `setup` of a subclass calls `make_head`.
    """

    pooling: str
    num_classes: int
    projector_config: ProjectorConfig | None
    head_norm: bool

    @property
    def keeps_statistics(self) -> bool:
        """Whether the model has running statistics (`batch_stats`) and takes `weight_B`."""
        return self.head_norm

    def make_head(self) -> None:
        """Creates the layers after the pooling."""
        self.projector = make_projector(self.projector_config)
        self.norm = make_norm(self.head_norm)
        self.head = layers.Dense(self.num_classes, True, layers.NORMAL, jnp.float32)
        if self.pooling == CLS_DIST:
            self.head_dist = layers.Dense(
                self.num_classes, True, layers.NORMAL, jnp.float32
            )

    def logits(self, x_BD: Array) -> Array:
        """Returns the logits of the head; of DeiT's two heads their mean."""
        if self.pooling != CLS_DIST:
            return self.head(x_BD)
        of_cls_BD, of_distilled_BD = jnp.split(x_BD, 2, axis=-1)
        return (self.head(of_cls_BD) + self.head_dist(of_distilled_BD)) / 2

    def read(self, x_BD: Array, key_B: Key | None, weight_B: Array | None) -> Array:
        """Returns the head's input x_BD from pooled features; arguments as of `normalize`."""
        x_BD = project(self.projector, placement.place("pooled", x_BD))
        return normalize(self.norm, x_BD, key_B, weight_B)
