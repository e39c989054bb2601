"""Batch norm with running statistics, as torch's BatchNorm2d, and BatchNorm1d on features."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base.types import Array
from flax_adapt.models import batch_stats
from flax_adapt.models.layers import Dtype


def moments(x_BYXC: Array, weight_B: Array) -> tuple[Array, Array, Array]:
    """Returns (mean_C, variance_C, count) over the pixels of all rows that count.

    All are float32 and of the GLOBAL batch. The variance is biased; `count` is a number
    of pixels. weight_B: float32, 0 for a row that does not count. Example: two images
    with pixels (1, 3) and (5, 7), which both count, give 4, 5, 4. There are two passes:
    the difference of two sums would lose digits where the mean is large.
    """
    rows, (_, height, width, _) = jnp.sum(weight_B), x_BYXC.shape
    share_B1 = (weight_B / jnp.maximum(rows, 1))[:, None]
    mean_C = jnp.sum(jnp.mean(x_BYXC, axis=(1, 2)) * share_B1, axis=0)
    square_BYXC = jnp.square(x_BYXC - mean_C[None, None, None])
    variance_C = jnp.sum(jnp.mean(square_BYXC, axis=(1, 2)) * share_B1, axis=0)
    return mean_C, variance_C, rows * (height * width)


class RunningBatchNorm(nn.Module):
    """Normalises every channel to mean 0 and variance 1; then scale and bias if `affine`.

    In training the moments are those of the batch, else the running ones; all are
    float32. The running moments move by `momentum` towards the mean and the UNBIASED
    variance of each batch (torch), and not at all where no row counts. They are not
    parameters but variables of the collection `batch_stats.NAME`.
    """

    eps: float
    momentum: float
    affine: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BYXC: Array, weight_B: Array | None) -> Array:
        """Returns x_BYXC, normalised, in `dtype`.

        weight_B: float32, the rows whose moments are used. A row of weight 0 does not
        count, but is normalised like the others. None: the running moments are used.
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
        """Moves the running moments towards those of a batch.

        A key encoder has no running moments: its collection is not mutable, and nothing
        is done.
        """
        if not self.is_mutable_collection(batch_stats.NAME):
            return
        mean, variance = self._running(mean_C.shape)
        rate = jnp.where(count > 0, jnp.float32(self.momentum), 0)
        unbiased_C = variance_C * (count / jnp.maximum(count - 1, 1))
        mean.value = mean.value + rate * (mean_C - mean.value)
        variance.value = variance.value + rate * (unbiased_C - variance.value)
