"""Our models against transformers, from stored outputs (see make_goldens.py)."""

import goldens
import inputs
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from flax_adapt import defaults, objectives
from flax_adapt.weights import strict

pytestmark = pytest.mark.parity

NAMES = sorted(inputs.SHAPES)


def mae_config(name, norm_pix):
    config = ConfigDict(defaults.reconstruct())
    config.hidden_ratio = inputs.MASK_RATIO[name]
    config.normalize_patches = norm_pix
    return config


def batch(name):
    return dict(
        image=inputs.images(name),
        noise=inputs.noise(name),
        label=inputs.labels(),
        weight=np.ones(inputs.BATCH, np.float32),
    )


def run(loss_fn, apply, params, inputs_):
    """Outputs of the model, loss and gradients: compiled at once."""
    key_B = jax.random.split(jax.random.key(0), inputs.BATCH)

    @jax.jit
    def compute(params):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, _), grads = grad_fn(params, {}, inputs_, key_B)
        return apply(params), loss, grads

    return compute(params)


def assert_same_gradients(grads, golden):
    """Every leaf to 1e-4 relative, and nothing flows to the fixed positions."""
    expected = goldens.under(golden, "grad")
    largest = max(np.linalg.norm(value) for value in expected.values())
    # The gradient of a key bias is zero: the softmax ignores a constant.
    distances = goldens.distances(grads, expected, floor=1e-3 * largest)
    assert max(distances.values()) < 1e-4, distances
    for leaf, grad in strict.flatten(grads).items():
        if leaf not in expected:
            assert leaf.endswith("/position")
            assert not np.any(grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm_pix", [True, False])
def test_mae_gives_the_prediction_mask_loss_and_gradients_of_transformers(
    name, norm_pix
):
    golden = goldens.read(f"mae_{name}_{'norm_pix' if norm_pix else 'raw'}")
    model = goldens.build(name, "mae")
    params = goldens.params(golden, inputs.STUDENT)
    loss_fn = objectives.build(mae_config(name, norm_pix), model)

    def predict(params):
        arguments = inputs.images(name), inputs.noise(name), None
        return model.apply({"params": params}, *arguments, inputs.MASK_RATIO[name])

    (prediction_BLP, hidden_BL), loss, grads = run(
        loss_fn, predict, params, batch(name)
    )
    np.testing.assert_array_equal(hidden_BL, golden["mask"] == 1)
    np.testing.assert_allclose(prediction_BLP, golden["logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-5, rtol=0)
    assert_same_gradients(grads, golden)


@pytest.mark.parametrize("name", NAMES)
def test_vit_gives_the_states_of_every_block_and_the_pooler_of_transformers(name):
    golden = goldens.read(f"vit_{name}")
    model = goldens.build(name, "encoder", pooler=True)
    variables = {"params": goldens.params(golden, inputs.STUDENT)}

    @jax.jit
    def run(image):
        states = model.apply(variables, image, None, method="encode")
        return states, model.apply(variables, image, None)

    states, (last_BLD, pooled_BD) = run(inputs.images(name))
    blocks = [golden[key] for key in sorted(golden) if key.startswith("block_")]
    for state_BLD, expected in zip(states, [*blocks, golden["last"]], strict=True):
        np.testing.assert_allclose(state_BLD, expected, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(last_BLD, states[-1])
    np.testing.assert_allclose(pooled_BD, golden["pooled"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_classifier_gives_the_logits_loss_and_gradients_of_transformers(name):
    golden = goldens.read(f"classify_{name}")
    model = goldens.build(name, "classify")
    params = goldens.params(golden, inputs.CLASSIFIER)
    config = ConfigDict(defaults.classify())
    logits_BN, loss, grads = run(
        objectives.build(config, model),
        lambda params: model.apply({"params": params}, inputs.images(name), None),
        params,
        batch(name),
    )
    np.testing.assert_allclose(logits_BN, golden["logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-5, rtol=0)
    assert_same_gradients(grads, golden)
