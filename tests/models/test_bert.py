"""Laws of the models of text; that they equal the reference is tests/parity's business."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_bert import TINY, build, cut, names_of, params_of, rows, shapes

from flax_adapt import models
from flax_adapt.base import keys
from flax_adapt.models import residual


def states_of(model, params):
    return jax.jit(
        lambda text: model.apply({"params": params}, text, None, method="encode")
    )


def gradient_by_position(model, params, text, row, place):
    """[L] bool: which tokens of the row the last state at `place` depends on.

    Measured at the embeddings of positions, by giving every token its own.
    """
    length = text.tokens_BL.shape[1]
    own = np.broadcast_to(np.arange(length, dtype=np.int32), text.tokens_BL.shape)
    text = text._replace(positions_BL=own)

    @jax.jit
    def gradient(position):
        def read(position):
            embed = {**params["encoder"]["embed"], "position": position}
            changed = {**params, "encoder": {**params["encoder"], "embed": embed}}
            state = model.apply({"params": changed}, text, None, method="encode")[-1]
            return jnp.sum(state[row, place] * jnp.arange(1.0, 17.0))

        return jax.grad(read)(position)

    offset = model.config.position_offset
    grads = gradient(params["encoder"]["embed"]["position"])
    return np.any(np.asarray(grads)[offset : offset + length], axis=1)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.usefixtures("strict_dtypes")
def test_padding_influences_no_real_token(kind):
    model = build("encoder", kind=kind, max_positions=13)
    params, text = params_of(model), rows((7,), (12,))
    states = states_of(model, params)
    other = text._replace(tokens_BL=text.tokens_BL.copy())
    other.tokens_BL[0, 7:] = (other.tokens_BL[0, 7:] + 5) % TINY["vocab_size"]
    alone = states(cut(text, 0, 0, 7))
    for padded, changed, bare in zip(states(text), states(other), alone, strict=True):
        np.testing.assert_allclose(padded[0, :7], changed[0, :7], atol=1e-6, rtol=0)
        np.testing.assert_allclose(padded[0, :7], bare[0], atol=1e-6, rtol=0)
        assert not np.allclose(padded[0, 7:], changed[0, 7:], atol=1e-2)
        assert np.all(np.isfinite(padded))
    seen = gradient_by_position(model, params, cut(text, 0, 0, 12), 0, 3)
    np.testing.assert_array_equal(seen, [True] * 7 + [False] * 5)


def test_documents_of_a_packed_row_are_blind_to_each_other():
    model = build("encoder")
    params, text = params_of(model), rows((3, 5, 2))
    for place, own in ((1, (0, 3)), (4, (3, 8)), (9, (8, 10)), (11, (10, 12))):
        seen = gradient_by_position(model, params, text, 0, place)
        np.testing.assert_array_equal(np.flatnonzero(seen), np.arange(*own))


def test_a_packed_document_has_the_states_it_has_alone():
    model = build("encoder")
    params, text = params_of(model), rows((3, 5, 4), (12,))
    states = states_of(model, params)
    packed = states(text)
    for start, stop in ((0, 3), (3, 8), (8, 12)):
        alone = states(cut(text, 0, start, stop))
        for ours, expected in zip(packed, alone, strict=True):
            np.testing.assert_allclose(
                ours[0, start:stop], expected[0], atol=1e-5, rtol=0
            )


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5)])
def test_dropping_depends_on_the_example_and_not_on_batch_or_padding(rates):
    model = build("classify", dropout=rates[0], drop_path=rates[1])
    params, text = params_of(model), rows((7,), (4,), (12,), (7,))
    text = text._replace(tokens_BL=text.tokens_BL.copy())
    for leaf in text:
        leaf[3] = leaf[0]  # the same text under another key
    apply = jax.jit(lambda text, key_B: model.apply({"params": params}, text, key_B))
    key_B = keys.example_keys(jax.random.key(3), jnp.arange(4))
    logits_BN = apply(text, key_B)
    order = np.array([2, 0, 3, 1])
    mixed = apply(jax.tree.map(lambda leaf: leaf[order], text), key_B[order])
    np.testing.assert_allclose(mixed, logits_BN[order], rtol=1e-4, atol=1e-5)
    short = apply(cut(text, 0, 0, 7), key_B[:1])
    np.testing.assert_allclose(short, logits_BN[:1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits_BN[0], logits_BN[3], atol=1e-3)
    assert not np.allclose(apply(text, None), logits_BN, atol=1e-3)


@pytest.mark.usefixtures("strict_dtypes")
def test_masked_lm_projects_the_asked_places_only_and_its_decoder_is_tied():
    model = build("mlm")
    params, text = params_of(model), rows((7,), (12,))
    at_BM = np.array([[6, 2, 2], [0, 11, 4]], np.int32)
    every_BL = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))

    @jax.jit
    def run(params, at):
        return model.apply({"params": params}, text, at, None)

    logits_BMV = run(params, at_BM)
    full_BLV = run(params, every_BL)
    assert logits_BMV.dtype == jnp.float32
    expected = np.take_along_axis(np.asarray(full_BLV), at_BM[..., None], axis=1)
    np.testing.assert_allclose(logits_BMV, expected, atol=1e-5, rtol=0)

    def of_the_head_alone(params):
        head = models.text.MaskedLMHead(model.config, jnp.float32)
        state_BLD = model.apply({"params": params}, text, None, method="encode")[-1]
        token_VD = params["encoder"]["embed"]["token"]
        logits = head.apply(
            {"params": params["mlm"]}, jax.lax.stop_gradient(state_BLD), token_VD
        )
        return logits, jnp.sum(jnp.square(logits))

    logits, _ = jax.jit(of_the_head_alone)(params)
    np.testing.assert_allclose(logits, full_BLV, atol=1e-5, rtol=0)
    grads = jax.jit(jax.grad(lambda params: of_the_head_alone(params)[1]))(params)
    moved = {name for name, leaf in names_of(grads).items() if np.any(leaf)}
    heads = {name for name in names_of(params) if name.startswith("mlm/")}
    assert moved == heads | {"encoder/embed/token"}
    # Of all tokens: also of those that no row has.
    assert np.all(np.any(grads["encoder"]["embed"]["token"], axis=1))


def test_parameters_have_the_promised_names_and_shapes():
    leaves = {name: leaf.shape for name, leaf in names_of(shapes(build("mlm"))).items()}
    ours = {
        "encoder/embed/token": (31, 16),
        "encoder/embed/position": (12, 16),
        "encoder/embed/token_type": (2, 16),
        "encoder/embed/norm/scale": (16,),
        "encoder/embed/norm/bias": (16,),
        "mlm/transform/kernel": (16, 16),
        "mlm/transform/bias": (16,),
        "mlm/norm/scale": (16,),
        "mlm/norm/bias": (16,),
        "mlm/bias": (31,),
    }
    for number in (0, 1):
        block = f"encoder/block_0{number}"
        for name, shape in {
            **{f"attention/{n}": (16, 16) for n in ("query", "key", "value", "out")},
            "mlp/up": (16, 32),
            "mlp/down": (32, 16),
        }.items():
            ours[f"{block}/{name}/kernel"] = shape
            ours[f"{block}/{name}/bias"] = shape[1:]
        for norm in ("norm1", "norm2"):
            ours |= {f"{block}/{norm}/{leaf}": (16,) for leaf in ("scale", "bias")}
    assert leaves == ours
    assert set(shapes(build("encoder"))) == {"encoder"}
    assert set(shapes(build("encoder", pooler=True))) == {"encoder", "pooler"}
    assert set(shapes(build("classify"))) == {"encoder", "pooler", "head"}
    for pooling in ("cls", "mean"):
        model = build("classify", pooling=pooling, pooler=True)
        assert set(shapes(model)) == {"encoder", "head"}


def test_parameters_start_as_hugging_faces():
    model = build("mlm", vocab_size=997, width=64)
    for name, leaf in names_of(models.init_params(model, jax.random.key(0))).items():
        if name.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1)
        elif name.endswith("bias"):
            np.testing.assert_array_equal(leaf, 0)
        elif leaf.size > 500:
            np.testing.assert_allclose(np.std(leaf), 0.02, rtol=0.15, err_msg=name)


def test_roberta_is_bert_with_its_positions_further_down():
    bert, roberta = build("encoder"), build("encoder", kind="roberta", pad_token_id=4)
    assert (bert.config.position_offset, roberta.config.position_offset) == (0, 5)
    params, text = params_of(bert), rows((7,), length=7)
    moved = jax.tree.map(np.asarray, params)
    moved["encoder"]["embed"]["position"] = np.roll(
        moved["encoder"]["embed"]["position"], 5, axis=0
    )
    ours = states_of(bert, params)(text)
    for state, expected in zip(states_of(roberta, moved)(text), ours, strict=True):
        np.testing.assert_array_equal(state, expected)


def test_dropout_does_not_know_how_far_a_row_is_padded():
    key_B = jax.random.split(jax.random.key(0), 3)
    long = residual.dropout(jnp.ones((3, 12, 8)), 0.5, key_B)
    short = residual.dropout(jnp.ones((3, 7, 8)), 0.5, key_B)
    np.testing.assert_array_equal(long[:, :7], short)
    assert 0 < np.mean(short == 0) < 1
