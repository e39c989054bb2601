"""Reductions of wide logits of which one chunk exists at a time, forward and backward.

The columns (tokens of a vocabulary, keys of a contrast) are dealt to the chunks in turn:
column m is number m // chunks of chunk m % chunks. So every chip keeps its own columns
where "tensor" divides them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_adapt.base.types import Array


class Reduced(NamedTuple):
    """Of each row of logits [R, M]: log sum exp, the largest one, and that of its column."""

    total_R: Array
    largest_R: Array
    chosen_R: Array


def deal(columns: Array, chunks: int, fill: float) -> Array:
    """Returns columns [M, ...] as [chunks, ceil(M / chunks), ...], ends filled with `fill`."""
    missing = -len(columns) % chunks
    widths = [(0, missing), *[(0, 0)] * (columns.ndim - 1)]
    padded = jnp.pad(columns, widths, constant_values=fill)
    return padded.reshape(-1, chunks, *columns.shape[1:]).swapaxes(0, 1)


def reduce_logits(
    logits_of: Callable[[Any], Array], dealt: Any, column_R: Array
) -> Reduced:
    """Returns the reductions of the logits of all chunks; all are float32.

    logits_of: one chunk of `dealt` (a tree of arrays from `deal`) -> logits [R, chunk],
    which are computed a second time for the gradient. column_R: int32, of each row.
    """
    chunks = len(jax.tree.leaves(dealt)[0])
    low_R = jnp.full(column_R.shape, jnp.finfo(jnp.float32).min)
    zero_R = jnp.zeros(column_R.shape, jnp.float32)

    @jax.checkpoint
    def add(so_far: Any, number: Array, chunk: Any) -> tuple[Array, Array, Array]:
        largest_R, sum_R, chosen_R = so_far
        logits_RM = logits_of(chunk)
        # Shifts by the largest cancel, so they have no gradient.
        seen_R = jax.lax.stop_gradient(jnp.max(logits_RM, axis=1))
        new_R = jnp.maximum(largest_R, seen_R)
        added_R = jnp.sum(jnp.exp(logits_RM - new_R[:, None]), axis=1)
        place_R1 = jnp.minimum(column_R // chunks, logits_RM.shape[1] - 1)[:, None]
        own_R = jnp.take_along_axis(logits_RM, place_R1, axis=1)[:, 0]
        chosen_R = jnp.where(column_R % chunks == number, own_R, chosen_R)
        return new_R, sum_R * jnp.exp(largest_R - new_R) + added_R, chosen_R

    def body(so_far: Any, one: Any) -> tuple[Any, None]:
        return add(so_far, *one), None

    start = (low_R, zero_R, zero_R)
    numbered = (jnp.arange(chunks, dtype=jnp.int32), dealt)
    (largest_R, sum_R, chosen_R), _ = jax.lax.scan(body, start, numbered)
    return Reduced(jnp.log(sum_R) + largest_R, largest_R, chosen_R)
