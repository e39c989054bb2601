"""InfoNCE (van den Oord et al. 2018, equation 4) as MoCo-v2 and MoCo-v3 have it.

All embeddings are float32 and of length 1; a cosine is their dot product.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_adapt.base.metrics import Mean
from flax_adapt.base.types import Array

_NO_LENGTH = 1e-12  # torch.nn.functional.normalize
_NEVER = -1e30  # the cosine of a key that does not count; finite: 0 * it is 0


def normalize(x_BD: Array) -> Array:
    """Returns x_BD of length 1; zeros stay zeros. (3, 4): (0.6, 0.8)."""
    square_B1 = jnp.sum(jnp.square(x_BD), axis=-1, keepdims=True)
    return x_BD * jax.lax.rsqrt(jnp.maximum(square_B1, _NO_LENGTH**2))


class Keys(NamedTuple):
    """What queries are compared with.

    key [B, D] of the GLOBAL batch; weight [B], 0: does not count, as key and as query;
    queue [K, D] of steps before (form "moco_v2"), or None.
    """

    key_BD: Array
    weight_B: Array
    queue_KD: Array | None


class Soft(NamedTuple):
    """Labels of mixed queries: lam of the own row's key, the rest of row partner's."""

    partner_B: Array
    lam_B: Array


def _cosines(query_BD: Array, key_MD: Array) -> Array:
    """Returns cosine_BM, in full float32: they will be divided by a low temperature."""
    return jnp.matmul(query_BD, key_MD.T, precision=jax.lax.Precision.HIGHEST)


def _among_batch(query_BD: Array, keys: Keys, row_B: Array) -> tuple[Array, Array]:
    cosine_BM = _cosines(query_BD, keys.key_BD)
    cosine_BM = jnp.where(keys.weight_B[None] > 0, cosine_BM, _NEVER)
    return jnp.take_along_axis(cosine_BM, row_B[:, None], axis=1)[:, 0], cosine_BM


def _among_queue(query_BD: Array, keys: Keys, row_B: Array) -> tuple[Array, Array]:
    assert keys.queue_KD is not None
    positive_B = jnp.sum(query_BD * keys.key_BD[row_B], axis=-1)
    negative_BK = _cosines(query_BD, keys.queue_KD)
    return positive_B, jnp.concatenate([positive_B[:, None], negative_BK], axis=1)


def _among_both(query_BD: Array, keys: Keys, row_B: Array) -> tuple[Array, Array]:
    assert keys.queue_KD is not None
    positive_B, cosine_BM = _among_batch(query_BD, keys, row_B)
    queue_BK = _cosines(query_BD, keys.queue_KD)
    return positive_B, jnp.concatenate([cosine_BM, queue_BK], axis=1)


class Form(NamedTuple):
    """What MoCo-v3 and MoCo-v2 differ in.

    directions: (view of the query, view of the keys); their losses are summed.
    scale: temperature -> what the loss is multiplied by.
    similar: (query_BD, keys, row_B) -> (cosine_B with the key in row_B, with all of them)
    similar_soft: the same for mixed queries, whose labels name two keys of the batch
    queue: the negatives are keys of earlier steps; and there is no predictor.
    """

    directions: tuple[tuple[int, int], ...]
    scale: Callable[[float], float]
    similar: Callable[[Array, Keys, Array], tuple[Array, Array]]
    similar_soft: Callable[[Array, Keys, Array], tuple[Array, Array]]
    queue: bool


# Chen et al. 2021, algorithm 1 and official code; He et al. 2020, algorithm 1. Mixed
# queries meet the keys of the batch and of the queue in both denominators: i-Mix's own
# code (Lee et al. 2021, method "mocon").
FORMS = {
    "moco_v3": Form(
        ((0, 1), (1, 0)), lambda tau: 2 * tau, _among_batch, _among_batch, False
    ),
    "moco_v2": Form(((0, 1),), lambda tau: 1.0, _among_queue, _among_both, True),
}


def info_nce(
    query_BD: Array,
    keys: Keys,
    row_B: Array,
    form: str,
    temperature: float,
    *,
    is_soft: bool = False,
) -> tuple[Array, Array]:
    """Returns (cross-entropy_B in nats, true where no key is nearer than that in row_B).

    Query (1, 0), own key (1, 0), other key (0, 1), temperature 1: log(1 + 1 / e), true.
    is_soft: the queries are mixed, see `Form.similar_soft`.
    """
    how = FORMS[form].similar_soft if is_soft else FORMS[form].similar
    positive_B, cosine_BM = how(query_BD, keys, row_B)
    total_B = jax.nn.logsumexp(cosine_BM / temperature, axis=1)
    return total_B - positive_B / temperature, positive_B >= jnp.max(cosine_BM, axis=1)


def measure(
    pairs: Sequence[tuple[Array, Keys]],
    soft: Soft | None,
    form: str,
    temperature: float,
) -> tuple[Mean, Mean]:
    """Returns (loss, accuracy) of queries and their keys, one pair for each direction.

    A query is right where its own key is the nearest, also if it is mixed.
    """
    errors, nearest = [], []
    for query_BD, keys in pairs:
        own_B = jnp.arange(len(query_BD), dtype=jnp.int32)
        among = functools.partial(
            info_nce, query_BD, keys, form=form, temperature=temperature
        )
        error_B, nearest_B = among(row_B=own_B, is_soft=soft is not None)
        if soft is not None:
            other_B, _ = among(row_B=soft.partner_B, is_soft=True)
            error_B = soft.lam_B * error_B + (1 - soft.lam_B) * other_B
        errors.append(error_B)
        nearest.append(nearest_B.astype(jnp.float32))
    weight_B = pairs[0][1].weight_B
    loss_B = FORMS[form].scale(temperature) * jnp.sum(jnp.stack(errors), axis=0)
    accuracy_B = jnp.mean(jnp.stack(nearest), axis=0)
    return Mean.of(loss_B, weight_B), Mean.of(accuracy_B, weight_B)
