"""Metrics are sums: merged over parts, batches and steps, divided once.

Each has `merge(other)` and `value()`. Arrays are float32; on the host, numpy.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from flax_adapt.base import scores


class Mean(struct.PyTreeNode):
    """A weighted mean that has not been divided yet. `total` and `count` are scalars."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> "Mean":
        """Returns the mean of `values` with `weights`, two arrays of the same shape."""
        return cls(jnp.sum(values * weights), jnp.sum(weights))

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> jax.Array:
        """Returns total / count; 0 where nothing was counted."""
        return _divide(self.total, self.count)


class Sum(struct.PyTreeNode):
    """A sum that is not divided, such as a number of tokens. `total` is a scalar."""

    total: jax.Array

    def merge(self, other: "Sum") -> "Sum":
        return Sum(self.total + other.total)

    def value(self) -> jax.Array:
        return self.total


class Perplexity(struct.PyTreeNode):
    """exp of a mean cross-entropy in nats over `count` tokens; `total` is its sum."""

    total: jax.Array
    count: jax.Array

    def merge(self, other: "Perplexity") -> "Perplexity":
        return Perplexity(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        # Limited, since the exponential of a diverged loss would overflow.
        """Returns exp(total / count), the exponent limited to 700."""
        return float(np.exp(min(float(_divide(self.total, self.count)), 700.0)))


class Loss(struct.PyTreeNode):
    """The loss to be minimised: a sum of means, each with a count of its own.

    A mean over masked tokens and one over examples cannot share a denominator: the parts
    of a batch are weighted term by term (see `step`).
    """

    terms: tuple[Mean, ...]

    @classmethod
    def of(cls, mean: Mean) -> "Loss":
        """Returns the loss of one term."""
        return cls((mean,))

    def plus(self, weight: float, mean: Mean) -> "Loss":
        """Returns the loss with the term weight * mean added."""
        return Loss((*self.terms, Mean(weight * mean.total, mean.count)))

    def times(self, weight: float) -> "Loss":
        """Returns the loss with every term multiplied by `weight`."""
        return Loss(tuple(Mean(weight * one.total, one.count) for one in self.terms))

    @property
    def counts(self) -> tuple[jax.Array, ...]:
        return tuple(term.count for term in self.terms)

    def over(self, counts: tuple[jax.Array, ...]) -> jax.Array:
        """Returns this part's share of the loss of a whole batch.

        counts: those of the terms of the whole batch.
        """
        shares = [
            _divide(term.total, count)
            for term, count in zip(self.terms, counts, strict=True)
        ]
        return sum(shares[1:], start=shares[0])

    def merge(self, other: "Loss") -> "Loss":
        pairs = zip(self.terms, other.terms, strict=True)
        return Loss(tuple(one.merge(two) for one, two in pairs))

    def value(self) -> jax.Array:
        return self.over(self.counts)


class Confusion(struct.PyTreeNode):
    """The number of examples of class i predicted as j, [N, N], and the name of a score."""

    counts_NN: jax.Array
    score: str = struct.field(pytree_node=False)  # a key of scores.SCORES

    def merge(self, other: "Confusion") -> "Confusion":
        return self.replace(counts_NN=self.counts_NN + other.counts_NN)

    def value(self) -> float:
        """Returns the score of the counts."""
        return scores.SCORES[self.score](np.asarray(self.counts_NN, np.float64))


class Spearman(struct.PyTreeNode):
    """Rank correlation of predictions with targets; a merge concatenates the examples."""

    predictions_B: jax.Array
    targets_B: jax.Array
    weights_B: jax.Array  # 0: does not count

    def merge(self, other: "Spearman") -> "Spearman":
        return jax.tree.map(lambda *both: np.concatenate(both), self, other)

    def value(self) -> float:
        counts_B = np.asarray(self.weights_B) > 0
        return scores.spearman(
            np.asarray(self.predictions_B)[counts_B],
            np.asarray(self.targets_B)[counts_B],
        )


class Predictions(struct.PyTreeNode):
    """What a model says about each example; a merge concatenates the examples.

    `Meter.take` takes it out of the sums, as its value is the number of examples alone.
    """

    indices_B: jax.Array  # the row in the evaluated examples
    labels_B: jax.Array
    guesses_B: jax.Array  # the likeliest class, or the predicted number
    losses_B: jax.Array
    weights_B: jax.Array  # 0: does not count
    classes: bool = struct.field(pytree_node=False)  # labels are classes, not numbers

    def merge(self, other: "Predictions") -> "Predictions":
        return jax.tree.map(lambda *both: np.concatenate(both), self, other)

    def value(self) -> float:
        """Returns the number of examples that count."""
        return float(np.sum(np.asarray(self.weights_B) > 0))


Metric: TypeAlias = Mean | Sum | Perplexity | Loss | Confusion | Spearman | Predictions


def _divide(total: jax.Array, count: jax.Array) -> jax.Array:
    """Returns total / count; 0 where nothing was counted."""
    return total / jnp.where(count == 0, 1, count)


def accuracy(logits_BN: jax.Array, labels_B: jax.Array, weight_B: jax.Array) -> Mean:
    """Returns the share of examples whose largest logit is the label's."""
    correct_B = jnp.argmax(logits_BN, axis=-1) == labels_B
    return Mean.of(correct_B.astype(jnp.float32), weight_B)


def confusion(
    logits_BN: jax.Array, labels_B: jax.Array, weight_B: jax.Array
) -> dict[str, Confusion]:
    """Returns every score of scores.SCORES, of the classes with the largest logits."""
    num_classes = logits_BN.shape[-1]
    true_BN = jax.nn.one_hot(labels_B, num_classes) * weight_B[:, None]
    taken_BN = jax.nn.one_hot(jnp.argmax(logits_BN, axis=-1), num_classes)
    counts_NN = true_BN.T @ taken_BN
    return {score: Confusion(counts_NN, score) for score in scores.SCORES}


# Metrics of training, which checkpoints store: class name -> metric from its numbers.
_KINDS: dict[str, Any] = {
    "Mean": lambda numbers: Mean(*numbers),
    "Sum": lambda numbers: Sum(*numbers),
    "Perplexity": lambda numbers: Perplexity(*numbers),
    "Loss": lambda numbers: Loss(
        tuple(Mean(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True))
    ),
}


class Meter:
    """Sums of metrics on the host, since the last report.

    They are float64, so that counts stay exact beyond 2^24.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Merges {name: metric} into the sums."""
        for name, metric in metrics.items():
            metric = jax.tree.map(lambda x: np.asarray(x, np.float64), metric)
            known = self._sums.get(name)
            self._sums[name] = metric if known is None else known.merge(metric)

    def take(self, name: str) -> Any | None:
        """Returns one of the sums, which are then without it; None if there is none."""
        return self._sums.pop(name, None)

    def values(self) -> dict[str, float]:
        """Returns {name: value} of the sums."""
        return {name: float(metric.value()) for name, metric in self._sums.items()}

    def to_plain(self) -> dict[str, list]:
        """Returns {name: [kind, numbers]}, which JSON stores exactly."""
        return {
            name: [type(metric).__name__, [float(x) for x in jax.tree.leaves(metric)]]
            for name, metric in self._sums.items()
        }

    @classmethod
    def from_plain(cls, sums: Mapping[str, list]) -> "Meter":
        """Returns the Meter that `to_plain` stored."""
        meter = cls()
        for name, (kind, numbers) in sums.items():
            meter.add({name: _KINDS[kind](np.asarray(numbers, np.float64))})
        return meter
