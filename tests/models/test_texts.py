"""What models of text take and give: dtypes, pooling, lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.programs import products
from support.tiny_bert import TINY, build, params_of, rows, shapes

from flax_adapt import models
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Text

# Those of contrast have heads that look at a batch: see test_contrast_model.
TASKS = sorted(set(models.TASKS["bert"]) - {"contrast"})


@pytest.mark.parametrize("task", TASKS)
def test_bfloat16_computes_near_float32_and_keeps_what_a_loss_sees_in_float32(task):
    text, at_BM = rows((7,), (12,)), np.array([[1], [2]], np.int32)
    outputs = []
    for dtype in models.DTYPES:
        model = build(task, dtype=dtype, pooler=True)
        params = models.init_params(model, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
        arguments = (text, at_BM) if task == "mlm" else (text,)
        outputs.append(jax.jit(model.apply)({"params": params}, *arguments, None))
    exact, coarse = (jax.tree.leaves(output) for output in outputs)
    assert not np.array_equal(exact[0], coarse[0])
    np.testing.assert_allclose(coarse[0].astype(np.float32), exact[0], atol=0.1)
    states = coarse[:1] if task == "encoder" else []
    assert {leaf.dtype for leaf in states} <= {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in coarse[len(states) :]} == {np.dtype("float32")}


def test_bfloat16_keeps_statistics_and_softmax_in_float32():
    model = build("mlm", dtype="bfloat16", depth=1)
    text, at_BM = rows((12,)), np.array([[1]], np.int32)
    program = jax.make_jaxpr(model.apply)(
        {"params": shapes_as_zeros(model)}, text, at_BM, None
    )
    dots = [dot.outvars[0].aval for dot in products(program)]
    logits = [dot.dtype for dot in dots if dot.shape[-1] == TINY["vocab_size"]]
    assert logits == [jnp.float32]
    lines = str(program).splitlines()
    for operation in ("rsqrt", "exp", "reduce_max"):
        found = [line for line in lines if f" {operation}" in line]
        assert found
        assert all(":f32" in line.split("=")[0] for line in found), found


def shapes_as_zeros(model):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(model))


@pytest.mark.parametrize("task", TASKS)
def test_embed_pools_the_last_state_over_real_tokens(task):
    model = build(task, dropout=0.5)
    params, text = params_of(model), rows((7,), (12,), ())

    @jax.jit
    def run(text):
        def apply(*arguments, method):
            return model.apply({"params": params}, text, *arguments, method=method)

        state_BLD = apply(None, method="encode")[-1]
        return state_BLD, *(apply(how, method="embed") for how in ("cls", "mean"))

    state_BLD, first_BD, mean_BD = run(text)
    np.testing.assert_allclose(first_BD, state_BLD[:, 0], atol=1e-6)
    np.testing.assert_allclose(
        mean_BD,
        [state_BLD[0, :7].mean(axis=0), state_BLD[1].mean(axis=0), np.zeros(16)],
        atol=1e-6,
    )
    layout = model.apply({}, text, method="layout")
    np.testing.assert_array_equal(layout.segments_BL, text.segments_BL)
    real_BL = text.segments_BL > 0
    np.testing.assert_array_equal(layout.pooled_BL, real_BL)
    first_BL = real_BL & (text.positions_BL == 0)
    np.testing.assert_array_equal(layout.first_BL, first_BL)
    assert model.modality == "text"
    assert models.config_of(model) == TINY
    assert models.task_of(model) == task


@pytest.mark.parametrize("pooling", models.CLASSIFIER_POOLING["bert"])
def test_a_classifier_is_its_pooling_and_one_linear_head(pooling):
    model = build("classify", pooling=pooling, num_classes=1, pooler=True)
    params, text = params_of(model), rows((7,), (12,))
    how = "mean" if pooling == "mean" else "cls"

    @jax.jit
    def run(text):
        variables = {"params": params}
        embedded = model.apply(variables, text, how, method="embed")
        return model.apply(variables, text, None), embedded

    logits_BN, x_BD = run(text)
    if pooling == "pooler":
        pooler = params["pooler"]
        x_BD = np.tanh(x_BD @ pooler["kernel"] + pooler["bias"][None])
    expected = x_BD @ params["head"]["kernel"] + params["head"]["bias"][None]
    assert logits_BN.shape == (2, 1)
    np.testing.assert_allclose(logits_BN, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "longest"), [("bert", 12), ("roberta", 11)])
def test_a_text_longer_than_the_model_is_the_users_mistake(kind, longest):
    model = build("encoder", kind=kind)
    variables = {"params": shapes(model)}
    jax.eval_shape(model.apply, variables, rows((3,), length=longest), None)
    with pytest.raises(UserError, match=rf"data\.seq_len to {longest}"):
        jax.eval_shape(model.apply, variables, rows((3,), length=longest + 1), None)


def test_parts_of_a_text_that_differ_in_shape_are_the_users_mistake():
    model, text = build("encoder"), rows((3,), length=8)
    for wrong in (
        text._replace(segments_BL=text.segments_BL[:, :7]),
        Text(*(leaf[0] for leaf in text)),
    ):
        with pytest.raises(UserError, match=r"tokens_BL.*data\.seq_len"):
            jax.eval_shape(model.apply, {"params": shapes(model)}, wrong, None)


def test_a_token_outside_of_the_vocabulary_is_seen():
    model = build("encoder")
    text = rows((12,))
    text.tokens_BL[0, 3] = TINY["vocab_size"]
    params = {"params": params_of(model)}
    encode = jax.jit(lambda text: model.apply(params, text, None, method="encode")[0])
    with jax.debug_nans(False):
        embedded = np.asarray(encode(text))
    assert np.all(np.isnan(embedded[0, 3]))
    assert np.all(np.isfinite(embedded[0, :3]))
