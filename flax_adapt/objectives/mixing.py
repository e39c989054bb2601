"""Mixup and cutmix of images and of tokens, and the draw of each example's partner.

Every example has a lambda of its own: its share of the mixture; the partner has the rest.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_adapt.base import keys
from flax_adapt.base.checks import Row, one_of
from flax_adapt.base.types import Array, Batch, Key

_LAMBDA, _CHOICE, _BOX, _PARTNER = range(4)


def mixup(image_BYXC: Array, partner_BYXC: Array, lam_B: Array) -> tuple[Array, Array]:
    """Returns lam * image + (1 - lam) * partner, and lam_B (Zhang et al. 2018, eq. 1)."""
    lam_B111 = lam_B[:, None, None, None]
    return lam_B111 * image_BYXC + (1 - lam_B111) * partner_BYXC, lam_B


def _box(
    key: Key, lam: Array, height: int, width: int, *, whole: bool = False
) -> Array:
    """Returns inside_YX, bool: a box of area (1 - lam), centred anywhere, cut at the border.

    whole: the sides are rounded down to whole pixels. Otherwise the box has the pixels
    whose centre lies in it, which may be half a pixel more.
    """
    center_y, center_x = jax.random.uniform(key, (2,)) * jnp.float32([height, width])
    sides = jnp.sqrt(1 - lam) * jnp.float32([height, width])
    half_y, half_x = (jnp.floor(sides) if whole else sides) / 2
    row_Y, column_X = (jnp.arange(n, dtype=jnp.float32) + 0.5 for n in (height, width))
    inside_Y = jnp.abs(row_Y - center_y) < half_y
    inside_X = jnp.abs(column_X - center_x) < half_x
    return inside_Y[:, None] & inside_X[None, :]


def cutmix(
    image_BYXC: Array,
    partner_BYXC: Array,
    lam_B: Array,
    key_B: Key,
    *,
    whole: bool = False,
) -> tuple[Array, Array]:
    """Returns images with a box of the partner, and lam_B: the share of their own pixels.

    Yun et al. 2019, algorithm 1, with lambda re-computed from the clipped box. `whole`:
    the box is never larger than the share 1 - lam_B asked for, as their code rounds it.
    """
    _, height, width, _ = image_BYXC.shape
    box = functools.partial(_box, height=height, width=width, whole=whole)
    inside_BYX = jax.vmap(box)(key_B, lam_B)
    mixed_BYXC = jnp.where(inside_BYX[..., None], partner_BYXC, image_BYXC)
    return mixed_BYXC, 1 - jnp.mean(inside_BYX.astype(jnp.float32), axis=(1, 2))


def _sample_lambda(key_B: Key, alpha: float) -> Array:
    return keys.draw(jax.random.beta, key_B, alpha, alpha, dtype=jnp.float32)


def mix(
    image_BYXC: Array,
    partner_BYXC: Array,
    key_B: Key,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple[Array, Array]:
    """Returns images mixed with lam ~ Beta(alpha, alpha), and lam_B, the own share.

    An alpha of 0 turns its operator off. With both on, a fair coin chooses for every
    example (timm's `elem` mode with a switch probability of 0.5).
    """
    # With both off, nothing is mixed.
    results = {"none": (image_BYXC, jnp.ones(len(image_BYXC), jnp.float32))}
    if mixup_alpha > 0:
        lam_B = _sample_lambda(keys.fold(key_B, _LAMBDA), mixup_alpha)
        results["mixup"] = mixup(image_BYXC, partner_BYXC, lam_B)
    if cutmix_alpha > 0:
        box_key_B = keys.fold(key_B, _BOX)
        lam_B = _sample_lambda(keys.fold(box_key_B, _LAMBDA), cutmix_alpha)
        place_B = keys.fold(box_key_B, _BOX)
        results["cutmix"] = cutmix(image_BYXC, partner_BYXC, lam_B, place_B)
    if len(results) == 3:
        coin_B = keys.draw(jax.random.bernoulli, keys.fold(key_B, _CHOICE))
        (up_BYXC, up_B), (cut_BYXC, cut_B) = results["mixup"], results["cutmix"]
        mixed_BYXC = jnp.where(coin_B[:, None, None, None], up_BYXC, cut_BYXC)
        return mixed_BYXC, jnp.where(coin_B, up_B, cut_B)
    return list(results.values())[-1]


def _span(key: Key, lam: Array, count: Array, length: int) -> Array:
    """Returns inside_L, bool: one span of (1 - lam) of the first `count` places.

    Its length is rounded down. It is centred anywhere, cut at the ends and never has the
    first place.
    """
    center = jax.random.uniform(key) * count
    half = jnp.floor((1 - lam) * count) / 2
    place_L = jnp.arange(length, dtype=jnp.float32) + 0.5
    return (jnp.abs(place_L - center) < half) & (place_L > 1)


def _cut_tokens(either_BL: Array, lam_B: Array, key_B: Key) -> Array:
    """Returns float32 [B, L]: 0 inside a span of the mixture, 1 outside."""
    count_B = jnp.sum(either_BL, axis=1, dtype=jnp.float32)
    span = functools.partial(_span, length=either_BL.shape[1])
    inside_BL = jax.vmap(span)(key_B, lam_B, count_B)
    return 1 - inside_BL.astype(jnp.float32)


class Operator(NamedTuple):
    """How an example is mixed with its partner.

    images(image_BYXC, partner_BYXC, lam_B, key_B) -> (mixed_BYXC, lam_B)
    tokens(either_BL, lam_B, key_B) -> share_BL, float32: the example's share of the places
        where both have a token; either_BL, bool: true where at least one of them has
    """

    images: Callable[[Array, Array, Array, Key], tuple[Array, Array]]
    tokens: Callable[[Array, Array, Key], Array]


def _blend_images(image_BYXC, partner_BYXC, lam_B, key_B):
    del key_B
    return mixup(image_BYXC, partner_BYXC, lam_B)


def _blend_tokens(either_BL, lam_B, key_B):
    del key_B
    return jnp.broadcast_to(lam_B[:, None], either_BL.shape)


def _cut_images(image_BYXC, partner_BYXC, lam_B, key_B):
    return cutmix(image_BYXC, partner_BYXC, lam_B, key_B, whole=True)


# None: nothing is mixed.
OPERATORS: dict[str, Operator | None] = {
    "none": None,
    "mixup": Operator(_blend_images, _blend_tokens),
    "cutmix": Operator(_cut_images, _cut_tokens),
}

# Which partners a row may draw: (domain of the row, domain of the partner) -> bool; 0:
# target, 1: source.
PAIRINGS: dict[str, Callable[[Array, Array], Array | bool]] = {
    # Ours: a source row draws a target row, too.
    "target_source": lambda own, other: own != other,
    # Ours: a source row is not mixed.
    "target_target": lambda own, other: (own == 0) & (other == 0),
    "any": lambda own, other: True,
}


def _larger_share(lam_B: Array) -> Array:
    return jnp.maximum(lam_B, 1 - lam_B)


# Reading -> the lambda to mix with, a function of the drawn one.
READINGS: dict[str, Callable[[Array], Array]] = {
    # Lee et al. 2021 (i-Mix), official code: the row has the larger share of its mixture.
    "imix": _larger_share,
    "unmix": lambda lam_B: lam_B,
    "instance": lambda lam_B: lam_B,
}


# Rules of a section `objective.mixing`.
ROWS = (
    one_of("objective.mixing.operator", lambda mixing: mixing.operator, OPERATORS),
    one_of("objective.mixing.pairing", lambda mixing: mixing.pairing, PAIRINGS),
    one_of("objective.mixing.reading", lambda mixing: mixing.reading, READINGS),
    Row(
        lambda mixing: 0 < mixing.alpha < math.inf,
        "objective.mixing.alpha={0.alpha} must be larger than 0; operator='none' turns "
        "mixing off",
    ),
)


def partner_rows(domain_B: Array, weight_B: Array, key_B: Key, pairing: str) -> Array:
    """Returns partner_B, int32: the row of the batch that each row is mixed with.

    Each row draws uniformly among the other rows of weight above 0 that `pairing` allows.
    Where there are none, and where its own weight is 0, it is its own partner. It draws
    with its own key from the whole batch, so the result does not depend on the number of
    devices.

    domain_B int32 (0: target, 1: source), weight_B float32. pairing: a key of PAIRINGS.
    """
    row_B, counts_B = jnp.arange(len(domain_B), dtype=jnp.int32), weight_B > 0
    others_BB = counts_B[:, None] & counts_B[None] & (row_B[:, None] != row_B[None])
    allowed_BB = others_BB & PAIRINGS[pairing](domain_B[:, None], domain_B[None])
    noise_BB = keys.draw(jax.random.uniform, keys.fold(key_B, _PARTNER), row_B.shape)
    drawn_B = jnp.argmax(jnp.where(allowed_BB, noise_BB, -1), axis=1)
    return jnp.where(jnp.any(allowed_BB, axis=1), drawn_B.astype(jnp.int32), row_B)


def partners(batch: Batch, key_B: Key, config_mixing: Any) -> Array:
    """Returns `partner_rows` of a batch; without "domain" all its rows are target rows."""
    weight_B = batch["weight"]
    domain_B = batch.get("domain", jnp.zeros(len(weight_B), jnp.int32))
    return partner_rows(domain_B, weight_B, key_B, config_mixing.pairing)


def _is_alone(partner_B: Array) -> Array:
    return partner_B == jnp.arange(len(partner_B), dtype=jnp.int32)


def _draw_lambda(partner_B: Array, key_B: Key, config_mixing: Any) -> Array:
    """Returns lam_B ~ Beta(alpha, alpha), changed by READINGS; 1 for rows without partner."""
    lam_B = _sample_lambda(keys.fold(key_B, _LAMBDA), config_mixing.alpha)
    return jnp.where(_is_alone(partner_B), 1, READINGS[config_mixing.reading](lam_B))


def mix_images(
    image_BYXC: Array, partner_B: Array, key_B: Key, config_mixing: Any
) -> tuple[Array, Array]:
    """Returns (mixed_BYXC, lam_B): images mixed with the rows `partner_B` of the batch.

    Images are float32, of any range. lam_B, float32, is the row's own share, for cutmix
    after the box was cut at the border. A row that is its own partner is not changed and
    has a lambda of 1. With the reading "imix" lambda is at least one half.

    `config_mixing`: operator, alpha, reading; see ROWS.
    """
    operator = OPERATORS[config_mixing.operator]
    if operator is None:
        return image_BYXC, jnp.ones(len(image_BYXC), jnp.float32)
    lam_B = _draw_lambda(partner_B, key_B, config_mixing)
    # 1 * image + 0 * the same image is the image, to the bit.
    partner_BYXC, box_key_B = image_BYXC[partner_B], keys.fold(key_B, _BOX)
    return operator.images(image_BYXC, partner_BYXC, lam_B, box_key_B)


class TokenMix(NamedTuple):
    """How to mix embeddings: own * embedding of the row + (1 - own) * that of its partner.

    own       float32 [B, L] in [0, 1]
    segments  int32 [B, L] of the mixture; 1: the row or its partner has a token, 0: padding
    lam       float32 [B]; the mean of own over the tokens of the mixture
    """

    own_BL: Array
    segments_BL: Array
    lam_B: Array


def mix_tokens(
    segments_BL: Array, partner_B: Array, key_B: Key, config_mixing: Any
) -> TokenMix:
    """Returns how padded rows, one document each, are mixed with the rows `partner_B`.

    Where only one of the two has a token, the mixture has that token. Where both have one,
    mixup gives the row's own the share lambda. Cutmix takes (1 - lambda) of the mixture's
    length from the partner, as one span that is rounded down to whole tokens and cut at the
    ends. A row that is its own partner is not changed.

    Ours: with cutmix the first token, CLS, is always the row's own (the partner has the
    same one). With both operators lambda is measured on the mixture, so that a longer
    partner counts for more. It may then be below one half even with the reading "imix".

    segments_BL int32, 0: padding. `config_mixing`: operator, alpha, reading.
    """
    operator = OPERATORS[config_mixing.operator]
    own_has_BL = segments_BL > 0
    if operator is None:
        return _token_mix(jnp.ones(segments_BL.shape, jnp.float32), own_has_BL)
    partner_has_BL = own_has_BL[partner_B]
    either_BL = own_has_BL | partner_has_BL
    lam_B = _draw_lambda(partner_B, key_B, config_mixing)
    share_BL = operator.tokens(either_BL, lam_B, keys.fold(key_B, _BOX))
    single_BL = jnp.where(partner_has_BL & ~own_has_BL, 0.0, 1.0)
    own_BL = jnp.where(own_has_BL & partner_has_BL, share_BL, single_BL)
    return _token_mix(own_BL, either_BL)


def _token_mix(own_BL: Array, real_BL: Array) -> TokenMix:
    """Returns the TokenMix of own_BL; real_BL is true where the mixture has a token.

    Lambda is 1 for a mixture without tokens.
    """
    count_B = jnp.sum(real_BL, axis=1, dtype=jnp.float32)
    others_B = jnp.sum(jnp.where(real_BL, 1 - own_BL, 0), axis=1)
    lam_B = 1 - others_B / jnp.maximum(count_B, 1)
    return TokenMix(own_BL, real_BL.astype(jnp.int32), lam_B)
