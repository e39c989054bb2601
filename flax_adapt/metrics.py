"""Metrics are (total, count) pairs: carried as sums, divided once."""

import jax
import jax.numpy as jnp
from flax import struct


class Mean(struct.PyTreeNode):
    """A weighted mean that has not been divided yet. `total` and `count` are float32 scalars."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "Mean":
        """Sums `values` and `weights`, both float [B]."""
        return cls(jnp.sum(values * weights), jnp.sum(weights))

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> jax.Array:
        """total / count; 0 where nothing was counted."""
        return self.total / jnp.where(self.count == 0, 1, self.count)


def accuracy(logits_BN: jax.Array, labels_B: jax.Array, weight_B: jax.Array) -> Mean:
    """Share of examples whose largest logit is the label's."""
    correct_B = jnp.argmax(logits_BN, axis=-1) == labels_B
    return Mean.of(correct_B.astype(jnp.float32), weight_B)
