"""Patches: their order, their positions, and which of them are hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_adapt import models
from flax_adapt.base.errors import UserError
from flax_adapt.models import masking


# Sums of the sin-cos positions of the official code of MAE.
@pytest.mark.parametrize(
    ("width", "side", "checksum"),
    [(768, 14, 69594.493859), (512, 14, 46340.333103), (1280, 16, 149578.405753)],
)
def test_sincos_positions_have_the_references_checksum(width, side, checksum):
    shape = (1, 1 + side**2, width)
    table = models.sincos_position(jax.random.key(0), shape, jnp.float32)
    assert not np.any(table[0, 0])
    total = np.sum(np.asarray(table, np.float64))
    np.testing.assert_allclose(total, checksum, rtol=1e-7)


def test_sincos_positions_put_the_column_first():
    # Patch 1 is row 0, column 1: sin(1) in the first half, sin(0) in the second.
    table = models.sincos_position(jax.random.key(0), (1, 5, 8), jnp.float32)
    np.testing.assert_allclose(table[0, 2, [0, 4]], [np.sin(1), 0], atol=1e-6)
    np.testing.assert_allclose(table[0, 3, [0, 4]], [0, np.sin(1)], atol=1e-6)


def test_patches_go_row_by_row_and_pixels_row_column_channel():
    image = np.arange(32).reshape(1, 4, 4, 2)  # value = 8 row + 2 column + channel
    patches = models.patchify(image, 2)
    np.testing.assert_array_equal(patches[0, 0], [0, 1, 2, 3, 8, 9, 10, 11])
    np.testing.assert_array_equal(patches[0, 1], [4, 5, 6, 7, 12, 13, 14, 15])
    np.testing.assert_array_equal(patches[0, 2, :4], [16, 17, 18, 19])


@pytest.mark.parametrize(("size", "channels", "patch"), [(16, 3, 4), (12, 1, 3)])
def test_unpatchify_undoes_patchify(size, channels, patch):
    image = np.random.default_rng(0).normal(size=(2, size, size, channels))
    restored = models.unpatchify(models.patchify(image, patch), patch)
    np.testing.assert_array_equal(restored, image)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 0.9])
def test_every_image_keeps_exactly_the_promised_patches(ratio):
    key_B = jax.random.split(jax.random.key(0), 5)
    noise_BL = masking.patch_noise(key_B, 16)
    visible = masking.num_visible(16, ratio)
    hiding = masking.hide_patches(noise_BL, visible)
    assert visible == int(16 * (1 - ratio))
    np.testing.assert_array_equal(hiding.hidden_BL.sum(axis=1), 16 - visible)
    for row, kept in zip(hiding.hidden_BL, hiding.visible_BV, strict=True):
        assert set(np.flatnonzero(~row)) == set(np.asarray(kept))
    assert len({tuple(row) for row in np.asarray(noise_BL)}) == 5  # masks per image


def test_the_patches_of_lowest_noise_stay_visible():
    noise_BL = np.array([[0.4, 0.1, 0.3, 0.2]])
    hiding = masking.hide_patches(noise_BL, 2)
    np.testing.assert_array_equal(hiding.visible_BV, [[1, 3]])
    np.testing.assert_array_equal(hiding.hidden_BU, [[2, 0]])
    np.testing.assert_array_equal(hiding.hidden_BL, [[True, False, True, False]])
    np.testing.assert_array_equal(hiding.order_BL, [[3, 0, 2, 1]])


@pytest.mark.parametrize("ratio", [-0.1, 0.95, 1.0])
def test_a_ratio_that_leaves_nothing_visible_is_the_users_mistake(ratio):
    with pytest.raises(UserError, match="hidden_ratio"):
        masking.num_visible(16, ratio)
