"""Mixing: what lambda means, and that it depends on an example's own key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_adapt import keys, mixing

pytestmark = pytest.mark.usefixtures("strict_dtypes")

NUM, SIZE = 64, 8  # 64 pixels: every share of them is exact in float32
IMAGE = jnp.ones((NUM, SIZE, SIZE, 3))
PARTNER = jnp.zeros((NUM, SIZE, SIZE, 3))
KEYS = keys.example_keys(jax.random.key(0), jnp.arange(NUM))


def mix(key_B, mixup_alpha, cutmix_alpha):
    mixed, lam = jax.jit(mixing.mix, static_argnums=(3, 4))(
        IMAGE, PARTNER, key_B, mixup_alpha, cutmix_alpha
    )
    return np.asarray(mixed), np.asarray(lam)


def is_cut(mixed):
    """True for examples that hold nothing but pixels of the one or the other."""
    return np.isin(mixed, [0, 1]).all(axis=(1, 2, 3))


def test_mixup_is_the_weighted_sum():
    lam = jnp.array([0.25, 1.0])
    image, partner = jnp.full((2, 1, 1, 1), 8.0), jnp.full((2, 1, 1, 1), 4.0)
    mixed, same = mixing.mixup(image, partner, lam)
    np.testing.assert_array_equal(mixed.ravel(), [5, 8])
    np.testing.assert_array_equal(same, lam)


def test_the_lambda_of_cutmix_is_the_share_of_pixels_kept():
    mixed, lam = mix(KEYS, 0.0, 1.0)
    assert is_cut(mixed).all()
    np.testing.assert_array_equal(lam, mixed.mean(axis=(1, 2, 3)))
    assert len(np.unique(lam)) > 10


def test_cutmix_pastes_one_rectangle_in_all_channels():
    mixed, _ = mix(KEYS, 0.0, 1.0)
    np.testing.assert_array_equal(mixed[..., :1], mixed[..., 1:2])
    inside = mixed[..., 0] == 0
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None, :])
    for line in np.concatenate([rows, columns]):
        (places,) = np.nonzero(line)
        assert len(places) == 0 or np.ptp(places) == len(places) - 1


@pytest.mark.parametrize(("lam", "area"), [(1.0, 0), (0.75, 16), (0.0, 64)])
def test_a_box_that_fits_has_the_area_of_one_minus_lambda(lam, area):
    areas = [
        int(jnp.sum(mixing._box(jax.random.key(seed), jnp.float32(lam), 8, 8)))
        for seed in range(40)
    ]
    assert max(areas) == area if lam > 0 else max(areas) > 40  # cut at the border
    assert min(areas) <= area


@pytest.mark.parametrize("alphas", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_mixing_an_example_depends_on_its_own_key_alone(alphas):
    order = np.random.default_rng(0).permutation(NUM)
    for one, other in zip(mix(KEYS[order], *alphas), mix(KEYS, *alphas), strict=True):
        np.testing.assert_array_equal(one, other[order])


def test_an_alpha_of_zero_switches_its_operator_off():
    assert not is_cut(mix(KEYS, 1.0, 0.0)[0]).any()
    assert is_cut(mix(KEYS, 0.0, 1.0)[0]).all()
    mixed, lam = mix(KEYS, 0.0, 0.0)
    np.testing.assert_array_equal(mixed, IMAGE)
    np.testing.assert_array_equal(lam, np.ones(NUM))


def test_with_both_a_fair_coin_chooses_for_every_example():
    mixed, lam = mix(KEYS, 1.0, 1.0)
    # 64 tosses: 5 standard deviations are 20.
    assert 12 < is_cut(mixed).sum() < 52
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), lam, atol=1e-6)


def test_lambda_follows_its_beta_distribution():
    key_B = keys.example_keys(jax.random.key(1), jnp.arange(4000))
    for alpha, variance in ((1.0, 1 / 12), (0.5, 1 / 8)):  # 1 / (4 (2 alpha + 1))
        lam = np.asarray(jax.jit(mixing._sample_lambda, static_argnums=1)(key_B, alpha))
        assert lam.mean() == pytest.approx(0.5, abs=0.03)
        assert lam.var() == pytest.approx(variance, rel=0.1)
