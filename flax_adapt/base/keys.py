"""Randomness that does not depend on the number of devices: one key for every example.

key of an example = fold_in(fold_in(seed, step), row in the GLOBAL batch).
"""

from collections.abc import Callable

import jax

from flax_adapt.base.types import Array, Key


def example_keys(key: Key, position_B: Array) -> Key:
    """Returns key_B: one key per example, from one key and the rows in the global batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, position_B)


def fold(key_B: Key, data: int) -> Key:
    """Returns key_B with a number, of a purpose or of a layer, folded into every key."""
    return jax.vmap(jax.random.fold_in, (0, None))(key_B, data)


def draw(sample: Callable[..., Array], key_B: Key, *args, **kwargs) -> Array:
    """Returns `sample(key, *args, **kwargs)` for every example, with a leading axis B."""
    return jax.vmap(lambda key: sample(key, *args, **kwargs))(key_B)
