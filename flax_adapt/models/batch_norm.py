"""Batch norm with running statistics: torch.nn.BatchNorm2d, BatchNorm1d on features."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base.types import Array
from flax_adapt.models import batch_stats
from flax_adapt.models.layers import Dtype


def moments(x_BYXC: Array, weight_B: Array) -> tuple[Array, Array, Array]:
    """Returns (mean_C, variance_C, count) of the pixels of all rows that count.

    float32, of the GLOBAL batch; the variance is biased. weight_B: 0, does not count.
    Two images of the pixels (1, 3) and (5, 7), both count: 4, 5, 4. In two passes: the
    difference of two sums would lose digits where the mean is large.
    """
    rows, (_, height, width, _) = jnp.sum(weight_B), x_BYXC.shape
    share_B1 = (weight_B / jnp.maximum(rows, 1))[:, None]
    mean_C = jnp.sum(jnp.mean(x_BYXC, axis=(1, 2)) * share_B1, axis=0)
    square_BYXC = jnp.square(x_BYXC - mean_C[None, None, None])
    variance_C = jnp.sum(jnp.mean(square_BYXC, axis=(1, 2)) * share_B1, axis=0)
    return mean_C, variance_C, rows * (height * width)


class RunningBatchNorm(nn.Module):
    """Centres and scales every channel, then scale and bias if `affine`.

    Statistics are float32.

    In training by the moments of the batch, else by the running ones. These move by
    `momentum` towards the mean and the UNBIASED variance of each batch (torch), and not
    at all where no row counts. They are no parameters: collection `batch_stats.NAME`.
    """

    eps: float
    momentum: float
    affine: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BYXC: Array, weight_B: Array | None) -> Array:
        """weight_B float32: the rows that the batch's moments are of (0: does not count,
        but comes out transformed like the others); None: the running moments.
        """
        shape, x_BYXC = x_BYXC.shape[-1:], x_BYXC.astype(jnp.float32)
        if weight_B is None:
            mean, variance = self._running(shape)
            mean_C, variance_C = mean.value, variance.value
        else:
            mean_C, variance_C, count = moments(x_BYXC, weight_B)
            self._move(mean_C, variance_C, count)
        scale_C = jax.lax.rsqrt(variance_C + self.eps)
        if self.affine:
            ones = nn.initializers.ones
            scale_C = self.param("scale", ones, shape, jnp.float32) * scale_C
        x_BYXC = (x_BYXC - mean_C[None, None, None]) * scale_C[None, None, None]
        if self.affine:
            bias_C = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
            x_BYXC = x_BYXC + bias_C[None, None, None]
        return x_BYXC.astype(self.dtype)

    def _running(self, shape: tuple[int, ...]) -> tuple[nn.Variable, nn.Variable]:
        return (
            self.variable(batch_stats.NAME, "mean", jnp.zeros, shape, jnp.float32),
            self.variable(batch_stats.NAME, "var", jnp.ones, shape, jnp.float32),
        )

    def _move(self, mean_C: Array, variance_C: Array, count: Array) -> None:
        """A key encoder keeps no statistics: its collection is not there to be moved."""
        if not self.is_mutable_collection(batch_stats.NAME):
            return
        mean, variance = self._running(mean_C.shape)
        rate = jnp.where(count > 0, jnp.float32(self.momentum), 0)
        unbiased_C = variance_C * (count / jnp.maximum(count - 1, 1))
        mean.value = mean.value + rate * (mean_C - mean.value)
        variance.value = variance.value + rate * (unbiased_C - variance.value)
