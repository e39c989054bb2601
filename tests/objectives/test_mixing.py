"""Mixing: what lambda means, and that it depends on an example's own key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from flax_adapt.base import checks, keys
from flax_adapt.base.errors import UserError
from flax_adapt.objectives import mixing
from flax_adapt.train import sharding

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


def section(operator="mixup", alpha=1.0, pairing="any", reading="unmix"):
    return FrozenConfigDict(
        {"operator": operator, "alpha": alpha, "pairing": pairing, "reading": reading}
    )


@pytest.mark.parametrize("field", ["operator", "pairing", "reading"])
def test_an_unknown_name_lists_the_choices(field):
    with pytest.raises(UserError, match=rf"objective.mixing.{field}='of'.*choose one"):
        checks.run(mixing.ROWS, section(**{field: "of"}))


def test_an_alpha_that_is_no_distribution_is_an_error():
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"objective.mixing.alpha=.*larger than 0"):
            checks.run(mixing.ROWS, section(alpha=alpha))
    for operator in mixing.OPERATORS:
        checks.run(mixing.ROWS, section(operator))


# Two sources, three targets, and one of each that does not count.
DOMAIN = np.int32([0, 1, 0, 0, 1, 0, 1])
WEIGHT = np.float32([1, 1, 0.5, 1, 1, 0, 0])
ALLOWED = {
    "target_source": [{1, 4}, {0, 2, 3}, {1, 4}, {1, 4}, {0, 2, 3}, {5}, {6}],
    "target_target": [{2, 3}, {1}, {0, 3}, {0, 2}, {4}, {5}, {6}],
    "any": [*({0, 1, 2, 3, 4} - {row} for row in range(5)), {5}, {6}],
}
partner_rows = jax.jit(mixing.partner_rows, static_argnums=3)


@pytest.mark.parametrize("pairing", mixing.PAIRINGS)
def test_every_allowed_row_is_drawn_equally_often_and_no_other(pairing):
    num = 600
    many = keys.example_keys(jax.random.key(2), jnp.arange(num * 7)).reshape(num, 7)
    draw = jax.vmap(lambda key: mixing.partner_rows(DOMAIN, WEIGHT, key, pairing))
    drawn = jax.jit(draw)(many)
    assert drawn.dtype == jnp.int32
    for row, allowed in enumerate(ALLOWED[pairing]):
        counts = np.bincount(drawn[:, row], minlength=7)
        assert set(np.flatnonzero(counts)) == allowed
        # 5 standard deviations of a count are at most 61.
        np.testing.assert_allclose(counts[sorted(allowed)], num / len(allowed), atol=61)


def test_a_lone_row_is_its_own_partner():
    for pairing in mixing.PAIRINGS:
        alone = partner_rows(np.int32([0]), np.float32([1]), KEYS[:1], pairing)
        np.testing.assert_array_equal(alone, [0])
    naive = partner_rows(np.zeros(7, np.int32), WEIGHT, KEYS[:7], "target_source")
    np.testing.assert_array_equal(naive, np.arange(7))


def test_what_a_row_draws_depends_on_its_own_key_and_on_the_rows_that_count():
    others = keys.example_keys(jax.random.key(9), jnp.arange(7)).at[3].set(KEYS[3])
    mine = partner_rows(DOMAIN, WEIGHT, KEYS[:7], "any")
    theirs = partner_rows(DOMAIN, WEIGHT, others, "any")
    assert mine[3] == theirs[3]
    assert (mine != theirs).any()
    padded = [np.pad(rows, (0, 3)) for rows in (DOMAIN, WEIGHT)]
    np.testing.assert_array_equal(partner_rows(*padded, KEYS[:10], "any")[:7], mine)


# Pixels of any range, all different.
PIXELS = np.random.default_rng(4).uniform(-2, 255, (NUM, 7, 9, 3)).astype(np.float32)
NEIGHBOUR = np.arange(NUM, dtype=np.int32) ^ 1  # rows in pairs
OPERATORS = ("mixup", "cutmix")


def mix_images(key_B, partner_B=NEIGHBOUR, image=PIXELS, **changes):
    mixed, lam = jax.jit(mixing.mix_images, static_argnums=3)(
        image, partner_B, key_B, section(**changes)
    )
    assert (mixed.dtype, lam.dtype) == (jnp.float32, jnp.float32)
    return np.asarray(mixed), np.asarray(lam)


def test_a_mixed_up_image_is_lambda_of_its_own_and_the_rest_of_its_partner():
    mixed, lam = mix_images(KEYS)
    assert len(np.unique(lam)) == NUM
    share = lam[:, None, None, None].astype(float)
    expected = share * PIXELS + (1 - share) * PIXELS[NEIGHBOUR]
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-4)


def test_a_cut_image_is_its_own_beside_a_box_and_lambda_counts_its_pixels():
    mixed, lam = mix_images(KEYS, operator="cutmix")
    kept = mixed == PIXELS
    assert (kept ^ (mixed == PIXELS[NEIGHBOUR])).all()
    np.testing.assert_allclose(lam, kept.mean(axis=(1, 2, 3)), rtol=1e-6)
    assert len(np.unique(lam)) > 10


@pytest.fixture
def drawn(monkeypatch):
    """These lambdas are drawn; nothing is jitted, so that nothing remembers them."""
    lam = np.linspace(0, 0.99, NUM, dtype=np.float32)
    monkeypatch.setattr(mixing, "_sample_lambda", lambda key_B, alpha: jnp.array(lam))
    return lam


def test_a_whole_box_is_never_larger_than_one_minus_lambda():
    lam = np.linspace(0, 1, 500, dtype=np.float32)
    key_B = keys.example_keys(jax.random.key(7), jnp.arange(500))
    box = jax.vmap(lambda key, lam: mixing._box(key, lam, 7, 9, whole=True))
    areas = np.asarray(box(key_B, lam)).sum(axis=(1, 2))
    assert (areas <= (1 - lam) * 63 + 1e-4).all()
    fits = np.floor(np.sqrt(1 - lam) * 7) * np.floor(np.sqrt(1 - lam) * 9)
    assert (areas[lam > 0.5] == fits[lam > 0.5]).mean() > 0.3


def test_with_imix_a_mixed_up_image_is_mostly_its_own(drawn):
    config = section("mixup", reading="imix")
    _, lam = mixing.mix_images(PIXELS, NEIGHBOUR, KEYS, config)
    np.testing.assert_array_equal(lam, np.maximum(drawn, 1 - drawn))


def test_with_imix_a_cut_image_never_loses_more_than_half(monkeypatch):
    num = 512  # some boxes are not cut at the border
    image = np.zeros((num, 7, 9, 1), np.float32)
    key_B = keys.example_keys(jax.random.key(5), jnp.arange(num))
    config = section("cutmix", reading="imix")
    for drawn, about in ((0.5, 0.65), (0.1, 0.95)):
        lam_B = jnp.full(num, drawn)
        monkeypatch.setattr(mixing, "_sample_lambda", lambda *_, lam_B=lam_B: lam_B)
        _, lam = mixing.mix_images(image, np.arange(num) ^ 1, key_B, config)
        assert lam.min() >= 0.5
        assert lam.min() < about


@pytest.mark.parametrize("reading", ["unmix", "instance"])
def test_the_other_readings_mix_with_lambda_as_it_was_drawn(drawn, reading):
    config = section("mixup", reading=reading)
    _, lam = mixing.mix_images(PIXELS, NEIGHBOUR, KEYS, config)
    np.testing.assert_array_equal(lam, drawn)


def assert_same_bits(one, other):
    one, other = (np.asarray(numbers).view(np.int32) for numbers in (one, other))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("operator", mixing.OPERATORS)
def test_an_image_without_a_partner_is_itself_to_the_bit(drawn, operator):
    partner_B = np.where(np.arange(NUM) < 8, np.arange(NUM), NEIGHBOUR).astype(np.int32)
    image = jnp.where(PIXELS < 100, jnp.float32(-0.0), PIXELS)
    mixed, lam = mixing.mix_images(image, partner_B, KEYS, section(operator))
    alone = NUM if operator == "none" else 8
    assert_same_bits(mixed[:alone], image[:alone])
    np.testing.assert_array_equal(lam[:alone], 1)
    assert (np.asarray(lam[alone:]) < 1).sum() >= 0.8 * (NUM - alone)


@pytest.mark.parametrize("operator", OPERATORS)
def test_mixing_a_row_depends_on_its_key_and_its_partner_alone(operator):
    rows = (np.arange(NUM) + 10) % NUM  # pairs stay together
    moved = mix_images(KEYS[rows], image=PIXELS[rows], operator=operator)
    for one, other in zip(moved, mix_images(KEYS, operator=operator), strict=True):
        assert_same_bits(one, other[rows])


def test_partners_and_images_are_the_same_on_one_and_on_eight_devices():
    def pair_and_mix(rows):
        key_B = keys.example_keys(jax.random.key(6), rows["position"])
        partner_B = mixing.partner_rows(
            rows["domain"], rows["weight"], key_B, "target_source"
        )
        return partner_B, [
            mixing.mix_images(rows["image"], partner_B, key_B, section(operator))
            for operator in OPERATORS
        ]

    batch = {
        "image": PIXELS,
        "domain": (np.arange(NUM) % 3 == 0).astype(np.int32),
        "weight": (np.arange(NUM) % 5 > 0).astype(np.float32),
        "position": np.arange(NUM, dtype=np.int32),
    }
    eight = sharding.make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    one, many = (
        jax.device_get(jax.jit(pair_and_mix)(sharding.put_batch(batch, mesh)))
        for mesh in (sharding.one_device(), eight)
    )
    assert (one[0] != np.arange(NUM)).sum() > NUM / 2
    jax.tree.map(np.testing.assert_array_equal, one, many)
