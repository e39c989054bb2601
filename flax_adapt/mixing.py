"""Mixup and cutmix of a batch with its partners; one lambda for every example."""

import jax
import jax.numpy as jnp

from flax_adapt import keys
from flax_adapt.types import Array, Key

_LAMBDA, _CHOICE, _BOX = range(3)


def mixup(image_BYXC: Array, partner_BYXC: Array, lam_B: Array) -> tuple[Array, Array]:
    """Returns lam * image + (1 - lam) * partner, and lam_B (Zhang et al. 2018, eq. 1)."""
    lam_B111 = lam_B[:, None, None, None]
    return lam_B111 * image_BYXC + (1 - lam_B111) * partner_BYXC, lam_B


def _box(key: Key, lam: Array, height: int, width: int) -> Array:
    """Returns inside_YX: a box of area (1 - lam), centred anywhere, cut at the border."""
    center_y, center_x = jax.random.uniform(key, (2,)) * jnp.float32([height, width])
    half = jnp.sqrt(1 - lam) / 2
    row_Y, column_X = (jnp.arange(n, dtype=jnp.float32) + 0.5 for n in (height, width))
    inside_Y = jnp.abs(row_Y - center_y) < half * height
    inside_X = jnp.abs(column_X - center_x) < half * width
    return inside_Y[:, None] & inside_X[None, :]


def cutmix(
    image_BYXC: Array, partner_BYXC: Array, lam_B: Array, key_B: Key
) -> tuple[Array, Array]:
    """Pastes a box of the partner; lam_B is the share of pixels really kept.

    Yun et al. 2019, algorithm 1, with lambda re-computed from the clipped box.
    """
    _, height, width, _ = image_BYXC.shape
    inside_BYX = jax.vmap(lambda key, lam: _box(key, lam, height, width))(key_B, lam_B)
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
    """Mixes with lam ~ Beta(alpha, alpha); an alpha of 0 turns its operator off.

    With both on, a fair coin chooses for every example (timm's `elem` mode with a
    switch probability of 0.5). Returns the mixed images and lam_B, the share of the
    first image.
    """
    # With neither, nothing is mixed.
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
