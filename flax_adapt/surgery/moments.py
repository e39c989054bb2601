"""Principal components of features, from one pass over the data.

The device computes count, mean and scatter matrix of every batch; the host merges batches in
float64 (Chan, Golub and LeVeque 1983). Nothing is sampled or approximated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array


class Moments(NamedTuple):
    """Moments of feature vectors x.

    rows: their number. mean_D: float64 [D]. scatter_DD: float64 [D, D], the sum of
    (x - mean)(x - mean)'.
    """

    rows: float
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of rows together."""
        rows = self.rows + other.rows
        if rows == 0:
            return self
        step_D = other.mean_D - self.mean_D
        between_DD = np.outer(step_D, step_D) * (self.rows * other.rows / rows)
        return Moments(
            rows,
            self.mean_D + step_D * (other.rows / rows),
            self.scatter_DD + other.scatter_DD + between_DD,
        )

    @property
    def covariance_DD(self) -> np.ndarray:
        """Covariance, float64 [D, D]: the scatter divided by the number of rows."""
        return self.scatter_DD / self.rows


def empty(width: int) -> Moments:
    """Returns the moments of no rows, for features of a width."""
    return Moments(0.0, np.zeros(width), np.zeros((width, width)))


def of_batch(x_BLD: Array, counts_BL: Array) -> tuple[Array, Array, Array]:
    """Returns (count, mean_D, scatter_DD), float32, of the tokens where counts_BL is 1.

    For use under jit; for a sharded batch these are the moments of the whole batch.
    """
    x_RD = x_BLD.reshape(-1, x_BLD.shape[-1]).astype(jnp.float32)
    weight_R1 = counts_BL.reshape(-1, 1).astype(jnp.float32)
    count = jnp.sum(weight_R1)
    mean_D = jnp.sum(x_RD * weight_R1, axis=0) / jnp.maximum(count, 1)
    centred_RD = (x_RD - mean_D[None]) * weight_R1
    highest = jax.lax.Precision.HIGHEST
    scatter_DD = jnp.matmul(centred_RD.T, centred_RD, precision=highest)
    return count, mean_D, scatter_DD


def fetch(count: Array, mean_D: Array, scatter_DD: Array) -> Moments:
    """Returns the `Moments` of one result of `of_batch`, on the host."""
    arrays = (np.asarray(x, np.float64) for x in (mean_D, scatter_DD))
    return Moments(float(count), *arrays)


def principal_components(moments: Moments, width: int) -> np.ndarray:
    """Returns P [D, width], float64: the principal components of the features.

    Its columns are orthonormal, the one of most variance first. Of all maps of that width
    x -> mean + P P' (x - mean) has the least squared error (Pearson 1901). The largest
    entry of a column is positive: so the same features give the same columns. Raises
    UserError unless there are more rows than components.
    """
    if moments.rows <= width:
        raise UserError(
            f"{width} principal components need more than {moments.rows:.0f} tokens: use "
            "more data, or another model.resize.init"
        )
    _, vectors_DD = np.linalg.eigh(moments.covariance_DD)
    vectors_DW = vectors_DD[:, ::-1][:, :width]
    largest_W = np.argmax(np.abs(vectors_DW), axis=0)
    return vectors_DW * np.sign(vectors_DW[largest_W, np.arange(width)])
