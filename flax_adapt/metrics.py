"""Metrics are (total, count) pairs: carried as sums, divided once."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
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


class Meter:
    """Sums of metrics on the host, since the last report."""

    def __init__(self) -> None:
        self._sums: dict[str, Mean] = {}

    def add(self, metrics: Mapping[str, Mean]) -> None:
        for name, mean in metrics.items():
            known = self._sums.get(name)
            self._sums[name] = mean if known is None else known.merge(mean)

    def values(self) -> dict[str, float]:
        return {name: float(mean.value()) for name, mean in self._sums.items()}

    def to_plain(self) -> dict[str, list[float]]:
        """{name: [total, count]}, which JSON holds exactly."""
        return {n: [float(m.total), float(m.count)] for n, m in self._sums.items()}

    @classmethod
    def from_plain(cls, sums: Mapping[str, list[float]]) -> "Meter":
        meter = cls()
        for name, pair in sums.items():
            total, count = np.asarray(pair, np.float32)
            meter.add({name: Mean(total, count)})
        return meter
