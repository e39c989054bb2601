"""Weights of another image size, patch size or number of channels: only when asked."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hf_folders import CONFIG, assert_same, build, random_params, save_text

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights import reshape

RNG = np.random.default_rng(0)
POSITION, KERNEL = "encoder/position", "encoder/patch_embed/kernel"


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A masked autoencoder of 8 x 8 pixels, 4 x 4 patches, 3 channels."""
    path = tmp_path_factory.mktemp("files") / "mae"
    model = build("mae")
    weights.save_pretrained(path, model, random_params(model))
    return path


@pytest.mark.parametrize(("old", "new"), [(2, 5), (5, 2), (4, 6), (3, 7), (1, 3)])
def test_a_constant_table_stays_constant_and_cls_is_kept(old, new):
    table = np.full((1, 1 + old**2, 3), 2.5, np.float32)
    table[:, 0] = normal(3)
    resized = reshape.resize_positions(table, new)
    assert resized.dtype == np.float32
    assert resized.shape == (1, 1 + new**2, 3)
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])
    np.testing.assert_allclose(resized[:, 1:], 2.5, rtol=1e-6)


def test_the_same_grid_is_the_same_table():
    table = normal(1, 10, 3)
    np.testing.assert_array_equal(reshape.resize_positions(table, 3), table)


def test_rows_stay_rows():
    """A table that depends on the row alone does so on a larger grid, in order."""
    table = np.concatenate([[0], np.repeat(np.arange(4), 4)])
    resized = reshape.resize_positions(table[None, :, None].astype(np.float32), 8)
    grid = resized[0, 1:, 0].reshape(8, 8)
    np.testing.assert_allclose(grid, np.broadcast_to(grid[:, :1], (8, 8)), atol=1e-6)
    assert np.all(np.diff(grid[:, 0]) > 0)


def test_positions_that_are_no_square_are_an_error():
    with pytest.raises(UserError, match="7 positions are no square"):
        reshape.resize_positions(normal(1, 8, 3), 4)


def resized_patch(patch, new):
    """A resize that is not ours; patch [row, column, channel]."""
    shape = (new, new, patch.shape[-1])
    return np.asarray(jax.image.resize(patch, shape, "bilinear", antialias=False))


@pytest.mark.parametrize(("old", "new"), [(4, 8), (4, 6), (3, 7), (4, 4)])
def test_a_larger_patch_gives_the_token_of_the_patch_it_was_made_from(old, new):
    kernel, patch = normal(old * old * 3, 5), normal(old, old, 3)
    larger = reshape.resize_patches(kernel, old, new, 3)
    token = resized_patch(patch, new).reshape(-1) @ larger
    np.testing.assert_allclose(token, patch.reshape(-1) @ kernel, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(8, 4), (6, 4), (7, 3)])
def test_no_other_kernel_of_a_smaller_patch_is_nearer_to_the_tokens(old, new):
    """For white noise x: the mean of (w x - w' B x)^2 is |w - B^T w'|^2."""
    kernel = normal(old * old, 2)
    basis = np.eye(old**2, dtype=np.float32).reshape(-1, old, old, 1)
    resize = np.stack([resized_patch(image, new).reshape(-1) for image in basis])
    best = reshape.resize_patches(kernel, old, new, 1)
    gradient = resize.T @ (kernel - resize @ best)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)
    assert np.abs(resize.T @ (kernel - resize @ (1.1 * best))).max() > 1e-2


def test_by_sum_a_grey_image_of_one_channel_gives_the_same_tokens():
    kernel, grey = normal(16 * 3, 5), normal(16, 1)
    one = reshape.change_channels(kernel, 3, 1, "sum")
    colour = np.repeat(grey, 3, axis=1).reshape(-1)
    np.testing.assert_allclose(grey[:, 0] @ one, colour @ kernel, atol=1e-5)
    average = reshape.change_channels(kernel, 3, 1, "average")
    np.testing.assert_allclose(3 * average, one, rtol=1e-6)


@pytest.mark.parametrize("how", ["sum", "average"])
def test_a_fourth_channel_of_zeros_changes_no_token(how):
    kernel, image = normal(16 * 3, 5), normal(16, 3)
    four = reshape.change_channels(kernel, 3, 4, how)
    padded = np.pad(image, ((0, 0), (0, 1))).reshape(-1)
    np.testing.assert_allclose(padded @ four, image.reshape(-1) @ kernel, atol=1e-5)
    added = four.reshape(16, 4, 5)[:, 3]
    expected = reshape.change_channels(kernel, 3, 1, how)
    np.testing.assert_array_equal(added, expected)


@pytest.mark.parametrize(("old", "new"), [(1, 3), (4, 3), (3, 2), (2, 4)])
def test_other_channels_are_refused_with_the_way_out(old, new):
    with pytest.raises(UserError, match="name 'encoder/patch_embed' in `fresh`"):
        reshape.change_channels(normal(old, 2), old, new, "sum")


def shapes_of(folder, task="encoder", **options):
    model, params, report = weights.from_pretrained(folder, task, **options)
    init = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, init)
    return model, params, report


def test_what_is_asked_for_is_reshaped_and_reported(folder):
    rules = ("position", "patch", "channels:sum")
    sizes = dict(image_size=6, patch_size=2, channels=1)
    model, params, report = shapes_of(folder, reshape=rules, **sizes)
    assert (model.config.image_size, model.config.num_patches) == (6, 9)
    assert dict(report.reshaped) == {
        POSITION: "position 2x2 -> 3x3, bicubic",
        KERNEL: "patch 4x4 -> 2x2, pseudo-inverse of bilinear, channels 3 -> 1, sum",
    }
    assert f"2 reshaped ({POSITION} position 2x2 -> 3x3, bicubic" in report.summary()
    for text in (report.table(), report.overview()):
        assert "position 2x2 -> 3x3, bicubic" in text
    assert json.loads(json.dumps(report.to_json()))["reshaped"] == report.reshaped
    original = random_params(build("mae"))["encoder"]
    expected = reshape.resize_positions(original["position"], 3)
    np.testing.assert_array_equal(params["encoder"]["position"], expected)
    assert_same(params["encoder"]["block_00"], original["block_00"])


def test_both_tables_of_a_masked_autoencoder_are_resized(folder):
    _, _, report = shapes_of(folder, "mae", image_size=12, reshape=("position",))
    assert sorted(report.reshaped) == ["decoder/position", POSITION]


def test_what_is_fresh_is_not_called_reshaped(folder):
    options = dict(fresh=("decoder",), key=jax.random.key(0), reshape=("position",))
    _, params, report = shapes_of(folder, "mae", image_size=12, **options)
    assert list(report.reshaped) == [POSITION]
    shape = params["decoder"]["position"].shape
    computed = models.sincos_position(jax.random.key(0), shape, jnp.float32)
    np.testing.assert_array_equal(params["decoder"]["position"], computed)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            dict(image_size=12),
            r"position \(1, 5, 8\) -> \(1, 10, 8\).*'position' in `re",
        ),
        (
            dict(channels=1),
            r"kernel \(48, 8\) -> \(16, 8\).*'patch' and 'channels:sum'",
        ),
        (dict(image_size=12, reshape=("patch",)), "'position' in `reshape` resize"),
        (dict(image_size=4, patch_size=2, reshape=("position",)), "'patch' and 'chann"),
        (dict(channels=1, reshape=("position", "patch")), "'patch' and 'channels:sum'"),
        (dict(reshape=("size",)), "reshape='size' is unknown"),
        (dict(reshape="position"), r"reshape=\('position',\)"),
        (dict(reshape=("channels:sum", "channels:average")), "two rules for the same"),
        (dict(image_size=9), "is not a multiple"),
    ],
)
def test_nothing_is_reshaped_unasked(folder, options, told):
    with pytest.raises(UserError, match=told) as error:
        weights.from_pretrained(folder, "encoder", **options)
    assert "\n" not in str(error.value)


def test_the_last_layer_of_a_decoder_cannot_be_reshaped_but_be_fresh(folder):
    options = dict(channels=1, reshape=("channels:sum",))
    with pytest.raises(UserError, match="decoder/predict cannot be resized"):
        weights.from_pretrained(folder, "mae", **options)
    options |= dict(fresh=("decoder/predict",), key=jax.random.key(0))
    _, _, report = shapes_of(folder, "mae", **options)
    assert report.fresh == ("decoder/predict/bias", "decoder/predict/kernel")


def test_an_encoder_alone_never_starts_with_a_decoder_nobody_asked_for(tmp_path):
    model = build("encoder", decoder=None)
    weights.save_pretrained(tmp_path / "a", model, random_params(model))
    with pytest.raises(UserError, match=r"fresh=\('decoder',\).*decoder_warmup=") as e:
        weights.from_pretrained(tmp_path / "a", "mae")
    assert "\n" not in str(e.value)
    assert "block_00" not in str(e.value)
    options = dict(fresh=("decoder",), key=jax.random.key(0))
    decoder = CONFIG["decoder"]
    mae, params, report = shapes_of(tmp_path / "a", "mae", decoder=decoder, **options)
    assert mae.decoder_config.width == decoder["width"]
    assert_same(params["encoder"], random_params(model)["encoder"])
    assert all(leaf.startswith("decoder/") for leaf in report.fresh)


def test_a_model_of_text_has_nothing_to_reshape(tmp_path):
    save_text(tmp_path / "a", "bert", "encoder")
    for options in (dict(reshape=("position",)), dict(image_size=8)):
        with pytest.raises(UserError, match=r"images only|a bert model has none"):
            weights.from_pretrained(tmp_path / "a", "encoder", **options)
