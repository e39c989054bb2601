"""Residual branches of a block: the tokens that have one, and what is dropped of it.

A loss often reads the last states of a few tokens alone: CLS, hidden patches, hidden words.
Then the last block takes keys and values from all tokens, but query, output projection,
MLP and residual path from those that are read: the same numbers for less work (ours). Of
L tokens with U of them read, a block of F = 4 D saves 10 (L - U) D^2 of 12 L D^2
multiply-adds, and (L - U) / L of its attention. Parameters are the same, and so are random
draws: those of dropout belong to the place of a token, those of drop path to an example.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_adapt.base import keys, placement
from flax_adapt.base.types import Array, Key

# Selects tokens of an array [B, L, ...]: states, or the rows of a mask [B, L, M].
Select = Callable[[Array], Array]


def first_token(x: Array) -> Array:
    """Returns the first token of each example, CLS: [B, 1, ...]."""
    return x[:, :1]


def at_places(at_BU: Array) -> Select:
    """Returns a function that selects the tokens at the places at_BU, int32."""

    def select(x_BLD: Array) -> Array:
        x_BUD = jnp.take_along_axis(x_BLD, at_BU[..., None], axis=1)
        return placement.place("states", x_BUD)

    return select


def take(select: Select | None, x: Array) -> Array:
    """Returns the selected tokens of x; None: x, all of them."""
    return x if select is None else select(x)


def select_pooled(pooling: str) -> Select | None:
    """Returns the tokens that a pooling reads: CLS for "cls" and "pooler", else all."""
    return first_token if pooling in ("cls", "pooler") else None


class Drawn(NamedTuple):
    """The tokens of a residual branch: `select` of the `length` tokens of an example."""

    length: int
    select: Select | None


def dropout(
    x_BLD: Array, rate: float, key_B: Key | None, drawn: Drawn | None = None
) -> Array:
    """Zeroes each number with probability `rate`, scales the rest by 1 / (1 - rate).

    JAX's generator is counter-based: the draw of a token depends on the key of its example
    and on its position, but neither on the batch nor on the padding of the rows. drawn:
    the tokens of x_BLD, which have the draws of their places; None: all tokens.
    """
    if key_B is None or rate == 0:
        return x_BLD
    length, select = drawn or (x_BLD.shape[1], None)
    shape = (length, *x_BLD.shape[2:])
    keep_BLD = keys.draw(jax.random.bernoulli, key_B, 1 - rate, shape)
    return jnp.where(take(select, keep_BLD), x_BLD / (1 - rate), 0)


def drop_path(x_BLD: Array, rate: float | Array, key_B: Key | None) -> Array:
    """Zeroes an example's whole branch with probability `rate` (Huang et al. 2016).

    rate: an array, float32 [], where blocks of several rates are one loop (`blocks`).
    """
    if key_B is None or (isinstance(rate, float) and rate == 0):
        return x_BLD
    keep_B11 = keys.draw(jax.random.bernoulli, key_B, 1 - rate, (1, 1))
    return jnp.where(keep_B11, x_BLD / jnp.asarray(1 - rate, x_BLD.dtype), 0)


def drop_branch(
    rates: tuple[float, float | Array],
    key_B: Key | None,
    branch: int,
    x_BLD: Array,
    drawn: Drawn | None = None,
) -> Array:
    """Applies dropout, then drop path, to a residual branch of a block.

    rates: of dropout and of drop path. branch: 0 or 1, which of the block's branches.
    drawn: the tokens of x_BLD; None: all.
    """
    if key_B is None:
        return x_BLD
    x_BLD = dropout(x_BLD, rates[0], keys.fold(key_B, 2 * branch), drawn)
    return drop_path(x_BLD, rates[1], keys.fold(key_B, 2 * branch + 1))
