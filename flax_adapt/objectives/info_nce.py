"""InfoNCE (van den Oord et al. 2018, equation 4) as MoCo-v2 and MoCo-v3 compute it.

All embeddings are float32 and of length 1; a cosine is their dot product.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_adapt.base import memory, placement
from flax_adapt.base.metrics import Mean
from flax_adapt.base.types import Array
from flax_adapt.objectives import in_chunks

_NO_LENGTH = 1e-12  # torch.nn.functional.normalize
_NEVER = -1e30  # replaces the cosine of a key of weight 0; finite: 0 * _NEVER is 0


def normalize(x_BD: Array) -> Array:
    """Returns x_BD, every row scaled to length 1; zeros stay zeros. (3, 4): (0.6, 0.8)."""
    square_B1 = jnp.sum(jnp.square(x_BD), axis=-1, keepdims=True)
    return x_BD * jax.lax.rsqrt(jnp.maximum(square_B1, _NO_LENGTH**2))


class Keys(NamedTuple):
    """The keys that queries are compared with; all float32.

    key [B, D] of the GLOBAL batch; weight [B], 0: the row counts neither as a key nor as a
    query; queue [K, D], keys of earlier steps (form "moco_v2"), or None.
    """

    key_BD: Array
    weight_B: Array
    queue_KD: Array | None


class Soft(NamedTuple):
    """Labels of mixed queries: the own row's key has lam_B, that of row partner_B the rest."""

    partner_B: Array
    lam_B: Array


def _cosines(query_BD: Array, key_MD: Array) -> Array:
    """Returns cosine_BM, in full float32, as they are divided by a low temperature.

    Every chip compares its own queries with all keys.
    """
    query_BD = placement.place("pooled", query_BD)
    key_MD = placement.place("compared", key_MD)
    cosine_BM = jnp.matmul(query_BD, key_MD.T, precision=jax.lax.Precision.HIGHEST)
    return placement.place("pooled", cosine_BM)


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


def _of_batch(keys: Keys) -> tuple[Array, Array]:
    return keys.key_BD, keys.weight_B > 0


def _of_queue(keys: Keys) -> tuple[Array, Array]:
    assert keys.queue_KD is not None
    return keys.queue_KD, jnp.ones(len(keys.queue_KD), bool)


def _of_both(keys: Keys) -> tuple[Array, Array]:
    pairs = zip(_of_batch(keys), _of_queue(keys), strict=True)
    key_MD, counts_M = (jnp.concatenate(pair) for pair in pairs)
    return key_MD, counts_M


# The keys that the functions above compare with: (keys) -> (key_MD, bool [M]: it counts),
# and whether the positive is one of them (else it is one more).
_DENOMINATORS: dict[Any, tuple[Callable[[Keys], tuple[Array, Array]], bool]] = {
    _among_batch: (_of_batch, True),
    _among_queue: (_of_queue, False),
    _among_both: (_of_both, True),
}


def _in_chunks(
    how: Any, query_BD: Array, keys: Keys, row_B: Array, temperature: float, chunks: int
) -> tuple[Array, Array, Array]:
    """Returns log sum exp of the logits, the positive and the largest logit, all [B].

    One chunk of the keys is compared at a time. A key that does not count has the logit
    that `_among_batch` gives it.
    """
    denominator, has_positive = _DENOMINATORS[how]
    key_MD, counts_M = denominator(keys)
    key_MD = placement.place("compared", key_MD)
    counts = in_chunks.deal(counts_M.astype(jnp.float32), chunks, 0)

    def logits_of(chunk: tuple[Array, Array]) -> Array:
        cosine_BM = _cosines(query_BD, chunk[0])
        return jnp.where(chunk[1][None] > 0, cosine_BM, _NEVER) / temperature

    dealt = (in_chunks.deal(key_MD, chunks, 0), counts)
    total_B, largest_B, chosen_B = in_chunks.reduce_logits(logits_of, dealt, row_B)
    if has_positive:
        return total_B, chosen_B, largest_B
    positive_B = jnp.sum(query_BD * keys.key_BD[row_B], axis=-1) / temperature
    total_B = jnp.logaddexp(total_B, positive_B)
    return total_B, positive_B, jnp.maximum(largest_B, positive_B)


class Form(NamedTuple):
    """The differences between MoCo-v3 and MoCo-v2.

    directions: (view of the query, view of the keys); their losses are summed.
    scale: temperature -> factor of the loss.
    similar: (query_BD, keys, row_B) -> (cosine_B with the key in row_B, cosine [B, M] with
        all keys of the denominator)
    similar_soft: the same for mixed queries, whose labels are two keys of the batch
    queue: the negatives are keys of earlier steps, and there is no predictor.
    """

    directions: tuple[tuple[int, int], ...]
    scale: Callable[[float], float]
    similar: Callable[[Array, Keys, Array], tuple[Array, Array]]
    similar_soft: Callable[[Array, Keys, Array], tuple[Array, Array]]
    queue: bool


# Chen et al. 2021, algorithm 1 and official code; He et al. 2020, algorithm 1. For mixed
# queries both denominators are over the keys of the batch and of the queue: i-Mix's own
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
    """Returns (cross-entropy_B in nats, bool [B]: no key is nearer than that in row_B).

    row_B: int32, the positive key of every query. form: a key of FORMS. is_soft: the
    queries are mixed, see `Form.similar_soft`. Query (1, 0), own key (1, 0), other key
    (0, 1), temperature 1: log(1 + 1 / e), true.
    """
    how = FORMS[form].similar_soft if is_soft else FORMS[form].similar
    chunks = memory.current().logit_chunks
    if chunks > 1:
        all_of = (how, query_BD, keys, row_B, temperature, chunks)
        total_B, positive_B, largest_B = _in_chunks(*all_of)
        return total_B - positive_B, positive_B >= largest_B
    positive_B, cosine_BM = how(query_BD, keys, row_B)
    total_B = jax.nn.logsumexp(cosine_BM / temperature, axis=1)
    return total_B - positive_B / temperature, positive_B >= jnp.max(cosine_BM, axis=1)


def measure(
    pairs: Sequence[tuple[Array, Keys]],
    soft: Soft | None,
    form: str,
    temperature: float,
) -> tuple[Mean, Mean]:
    """Returns (loss, accuracy), means over the queries of weight above 0.

    pairs: (query_BD, keys) of each direction of the form. soft: the labels of mixed
    queries, None for plain ones. A query, mixed or plain, is right where the key of its own
    row is the nearest.
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
