"""Heads that stand on a representation while it is trained, and are dropped after that.

Those of MoCo-v3 (Chen et al. 2021, official code): a projector, then a predictor for the
queries alone. Without batch norm, the MLP head of MoCo-v2 (Chen et al. 2020). Nothing is
kept for an inference, such as running statistics. Beside them the batch norm of a linear
probe, which keeps its own.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array, Key
from flax_adapt.models import layers
from flax_adapt.models.batch_norm import RunningBatchNorm

EPS = 1e-5  # torch.nn.BatchNorm1d
# Of a linear probe (He et al. 2022, official code, main_linprobe.py), and torch's own.
PROBE_EPS, PROBE_MOMENTUM = 1e-6, 0.1
# torch's Linear, as in the official code: uniform in +-1 / sqrt(inputs).
KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """The heads: `layers` of width `hidden`, the last of width `width`; 0: none.

    predictor_layers: as many for the predictor, which ends as wide as what it is given;
    0: there is none. batch_norm: after every layer, which then has no bias.
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
        """Returns x_BD; with a depth of 0 what it was given."""
        config = self.config
        end = config.width if config.layers else x_BD.shape[-1]
        for number in range(self.depth):
            last = number == self.depth - 1
            width = end if last else config.hidden
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


def make_projector(config: ProjectorConfig | None) -> Head | None:
    """Returns what stands between the features and a classifier, if anything does."""
    if config is None:
        return None
    if config.batch_norm:
        raise UserError(
            "model.projector.batch_norm must be False for a classifier: what an example is "
            "taken for must not depend on its batch"
        )
    return Head(config.layers, config)


def project(projector: Head | None, x_BD: Array) -> Array:
    """Returns what a classifier's head is given."""
    if projector is None:
        return x_BD
    return projector(x_BD, jnp.ones(len(x_BD), jnp.float32))


def make_norm(head_norm: bool) -> RunningBatchNorm | None:
    """Returns the batch norm before a linear probe's head: without scale and bias."""
    if not head_norm:
        return None
    return RunningBatchNorm(PROBE_EPS, PROBE_MOMENTUM, False, jnp.float32)


def normalize(
    norm: RunningBatchNorm | None,
    x_BD: Array,
    key_B: Key | None,
    weight_B: Array | None,
) -> Array:
    """Returns what a classifier's head is given.

    In training, that is with keys, by the moments of the rows that weight_B counts.
    """
    if norm is None:
        return x_BD
    rows_B = None if key_B is None else weight_B
    return norm(x_BD[:, None, None], rows_B)[:, 0, 0]


class LinearClassifier(nn.Module):
    """The end of a classifier of transformers: one linear head in float32.

    A projector before it is a part of training alone (Bordes et al. 2023), and so is batch
    norm right before the head, `head_norm` (of a linear probe). `setup` of a subclass
    calls `make_head`.
    """

    pooling: str
    num_classes: int
    projector_config: ProjectorConfig | None
    head_norm: bool

    @property
    def keeps_statistics(self) -> bool:
        """Whether batches are told what counts in them, see `batch_stats`."""
        return self.head_norm

    def make_head(self) -> None:
        """Makes the layers behind the pooling."""
        self.projector = make_projector(self.projector_config)
        self.norm = make_norm(self.head_norm)
        self.head = layers.Dense(self.num_classes, True, layers.NORMAL, jnp.float32)

    def read(self, x_BD: Array, key_B: Key | None, weight_B: Array | None) -> Array:
        """Returns what the head is given of pooled features; as for `normalize`."""
        x_BD = project(self.projector, x_BD)
        return normalize(self.norm, x_BD, key_B, weight_B)
