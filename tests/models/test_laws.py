"""Laws of the models; that they equal the reference is tests/parity's business."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import programs
from support.tiny_vit import build, images, shapes

from flax_adapt import models
from flax_adapt.base import keys
from flax_adapt.base.errors import UserError
from flax_adapt.models import architecture, layers, masking, residual

# Those of contrast have heads that look at a batch: see test_contrast_model.
TASKS = sorted(set(models.TASKS["vit"]) - {"contrast"})


def test_parameters_have_the_promised_names_and_shapes():
    params = shapes(build("mae"))
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert leaves["encoder/patch_embed/kernel"] == (48, 16)
    assert leaves["encoder/cls_token"] == (1, 1, 16)
    assert leaves["encoder/position"] == (1, 17, 16)
    assert leaves["encoder/block_01/attention/query/kernel"] == (16, 16)
    assert leaves["encoder/block_01/mlp/up/kernel"] == (16, 32)
    assert leaves["decoder/mask_token"] == (1, 1, 8)
    assert leaves["decoder/predict/kernel"] == (8, 48)
    assert set(shapes(build("classify"))) == {"encoder", "head"}
    assert set(shapes(build("encoder", pooler=True))) == {"encoder", "pooler"}
    without = shapes(build("encoder", qkv_bias=False))
    assert set(without["encoder"]["block_00"]["attention"]["key"]) == {"kernel"}


@pytest.mark.usefixtures("strict_dtypes")
def test_hidden_pixels_cannot_influence_the_prediction_and_positions_are_constants():
    model = build("mae", depth=1)
    params = models.init_params(model, jax.random.key(0))
    noise_BL = masking.patch_noise(jax.random.split(jax.random.key(2), 4), 16)

    @jax.jit
    def gradients(params, image):
        def total(params, image):
            prediction_BLP, hidden_BL = model.apply(
                {"params": params}, image, noise_BL, None, 0.75
            )
            return jnp.sum(jnp.square(prediction_BLP)), hidden_BL

        return jax.grad(total, argnums=(0, 1), has_aux=True)(params, image)

    (grads, grad_image), hidden_BL = gradients(params, images())
    grad_BLP = models.patchify(grad_image, 4)
    assert not np.any(grad_BLP[hidden_BL])
    assert np.all(np.any(np.asarray(grad_BLP)[~np.asarray(hidden_BL)], axis=-1))
    zero = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(leaf)
    }
    zero -= {
        name for name in zero if name.endswith("key/bias")
    }  # zero but for rounding
    assert zero == {"encoder/position", "decoder/position"}


@pytest.mark.usefixtures("strict_dtypes")
def test_dropout_depends_on_the_key_of_the_example_and_on_nothing_else():
    model = build("classify", dropout=0.5, drop_path=0.0, depth=1)
    params = models.init_params(model, jax.random.key(0))
    image, position = images(4), jnp.arange(4)
    apply = jax.jit(lambda image, key_B: model.apply({"params": params}, image, key_B))
    key_B = keys.example_keys(jax.random.key(3), position)
    logits_BN = apply(image, key_B)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        apply(image[order], key_B[order]), logits_BN[order], rtol=1e-5
    )
    np.testing.assert_allclose(apply(image[:2], key_B[:2]), logits_BN[:2], rtol=1e-5)
    # The same image under another key gives other logits.
    same = apply(jnp.repeat(image[:1], 4, axis=0), key_B)
    assert len({float(value) for value in same[:, 0]}) == 4


@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5)])
def test_both_branches_of_a_block_draw_anew(rates):
    key_B = jax.random.split(jax.random.key(0), 64)
    after_attention, after_mlp = (
        residual.drop_branch(rates, key_B, branch, jnp.ones((64, 1, 8)))
        for branch in (0, 1)
    )
    assert not np.array_equal(after_attention, after_mlp)


def test_dense_multiplies_matrices_in_the_compute_dtype():
    dense = layers.Dense(8, True, jax.nn.initializers.ones, jnp.bfloat16)
    x_BLD = jnp.ones((2, 3, 4))
    params = dense.init(jax.random.key(0), x_BLD)
    program = jax.make_jaxpr(dense.apply)(params, x_BLD)
    dot, *_ = programs.products(program)
    operands = [(v.aval.shape, v.aval.dtype) for v in dot.invars]
    assert operands == [((6, 4), jnp.bfloat16), ((4, 8), jnp.bfloat16)]
    assert program.out_avals[0].shape == (2, 3, 8)


@pytest.mark.parametrize("drop", [residual.dropout, residual.drop_path])
def test_dropping_keeps_the_mean_and_is_the_identity_without_rate_or_key(drop):
    key_B = jax.random.split(jax.random.key(0), 2000)
    x_BLD = jnp.ones((2000, 2, 3))
    dropped = drop(x_BLD, 0.25, key_B)
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    np.testing.assert_allclose(np.mean(dropped), 1, atol=0.05)
    np.testing.assert_array_equal(drop(x_BLD, 0.0, key_B), x_BLD)
    np.testing.assert_array_equal(drop(x_BLD, 0.25, None), x_BLD)


def test_drop_path_drops_whole_examples_and_rises_linearly():
    key_B = jax.random.split(jax.random.key(0), 50)
    dropped = np.asarray(residual.drop_path(jnp.ones((50, 2, 3)), 0.5, key_B))
    assert all(len(np.unique(row)) == 1 for row in dropped)
    assert 0 < np.count_nonzero(dropped[:, 0, 0]) < 50
    np.testing.assert_allclose(
        architecture.drop_path_rates(0.3, 4), [0, 0.1, 0.2, 0.3], atol=1e-12
    )
    assert architecture.drop_path_rates(0.3, 1) == (0,)


@pytest.mark.parametrize("task", TASKS)
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(task):
    outputs = []
    for dtype in models.DTYPES:
        model = build(task, dtype=dtype, depth=1)
        params = models.init_params(model, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
            jnp.dtype("float32")
        }
        arguments = (jnp.zeros((4, 16)),) if task == "mae" else ()
        ratio = (0.5,) if task == "mae" else ()
        apply = jax.jit(model.apply, static_argnums=(3, 4) if task == "mae" else ())
        outputs.append(apply({"params": params}, images(), *arguments, None, *ratio))
    exact, coarse = (jax.tree.leaves(output)[0] for output in outputs)
    assert not np.array_equal(exact, coarse)
    np.testing.assert_allclose(coarse, exact, atol=0.1)
    assert exact.dtype == jnp.float32
    if task != "encoder":  # what a loss is computed from is float32 in any case
        assert coarse.dtype == jnp.float32


def test_mean_pooling_leaves_cls_out():
    x_BLD = jnp.array([[[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]]])
    np.testing.assert_array_equal(models.pool(x_BLD, "mean"), [[2, 3]])
    np.testing.assert_array_equal(models.pool(x_BLD, "cls"), [[9, 9]])


def test_mean_norm_normalises_the_mean_of_what_leaves_the_last_block():
    model = build("classify", depth=1, pooling="mean_norm")
    params = models.init_params(model, jax.random.key(0))
    params["encoder"]["norm"] = dict(scale=jnp.arange(16.0), bias=jnp.ones(16))

    @jax.jit
    def run(image):
        def apply(*arguments, **options):
            return model.apply({"params": params}, *arguments, **options)

        states = apply(image, None, method="encode")
        embedded = apply(image, "mean_norm", method="embed")
        return states[0], embedded, apply(image, None)

    state_BLD, embedded_BD, logits_BN = run(images(2))
    mean_BD = np.asarray(state_BLD)[:, 1:].mean(axis=1)
    mean_BD = mean_BD - mean_BD.mean(axis=1, keepdims=True)
    mean_BD = mean_BD / np.sqrt(mean_BD.var(axis=1, keepdims=True) + 1e-6)
    wanted_BD = mean_BD * np.arange(16) + 1
    np.testing.assert_allclose(embedded_BD, wanted_BD, atol=1e-4)
    head = jax.tree.map(np.asarray, params["head"])
    wanted_BN = wanted_BD @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits_BN, wanted_BN, atol=1e-4)


def test_encode_returns_the_state_after_every_block_and_after_the_norm():
    model = build("encoder", depth=1)
    params = models.init_params(model, jax.random.key(0))
    encode = jax.jit(
        lambda image: model.apply({"params": params}, image, None, method="encode")
    )
    states = encode(images())
    assert [state.shape for state in states] == [(4, 17, 16)] * 2
    last = np.asarray(states[-1])
    np.testing.assert_allclose(last.mean(axis=-1), 0, atol=1e-5)
    assert np.abs(np.asarray(states[0]).mean(axis=-1)).max() > 1e-3


def test_embed_pools_the_last_state_and_layout_numbers_its_tokens():
    for task in TASKS:
        model = build(task, depth=1, dropout=0.5, dtype="bfloat16")
        params = models.init_params(model, jax.random.key(0))

        @jax.jit
        def run(image, model=model, params=params):
            def apply(*arguments, method):
                return model.apply({"params": params}, *arguments, method=method)

            state_BLD = apply(image, None, method="encode")[-1].astype(jnp.float32)
            names = ("cls", "mean")
            embedded = [apply(image, how, method="embed") for how in names]
            pooled = [models.pool(state_BLD, how) for how in names]
            return embedded, pooled, apply(image, method="layout")

        embedded, pooled, layout = run(images(2))
        np.testing.assert_array_equal(embedded, pooled)
        assert embedded[0].dtype == jnp.float32
        np.testing.assert_array_equal(layout.segments_BL, np.ones((2, 17)))
        np.testing.assert_array_equal(layout.first_BL, [np.arange(17) == 0] * 2)
        np.testing.assert_array_equal(layout.pooled_BL, ~layout.first_BL)
        assert model.modality == "image"


def test_an_image_of_another_size_is_the_users_mistake():
    model = build("encoder")
    with pytest.raises(UserError, match=r"\(20, 20, 3\).*\(16, 16, 3\)"):
        jax.eval_shape(model.apply, {"params": shapes(model)}, images(2, 20), None)
