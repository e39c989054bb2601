"""Our text encoders against transformers (see make_text_goldens.py)."""

import json

import goldens
import jax
import numpy as np
import pytest
import text_inputs
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from flax_adapt import defaults, objectives, weights
from flax_adapt.models import masking
from flax_adapt.weights import strict

pytestmark = pytest.mark.parity

NAMES = sorted(text_inputs.CONFIGS)
WRITTEN = [name for name in NAMES if text_inputs.kind(name) in text_inputs.WRITTEN]
# Fields with several names for one activation, of which we write one.
ACTIVATIONS = ("hidden_act", "activation", "hidden_activation")


def batch(name, **more):
    text = goldens.text_of(text_inputs.batch(name))
    weight = np.ones(len(text.tokens_BL), np.float32)
    return dict(text=text, weight=weight, **more)


def run(config, model, params, batch_, outputs):
    """`outputs(apply)` of the model, loss and gradients: compiled at once."""
    key_B = jax.random.split(jax.random.key(0), len(batch_["weight"]))
    loss_fn = objectives.build(ConfigDict(config), model)

    @jax.jit
    def compute(params):
        def apply(*arguments, **options):
            return model.apply({"params": params}, *arguments, None, **options)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, _), grads = grad_fn(params, {}, batch_, key_B)
        return outputs(apply), loss, grads

    return compute(params)


def assert_same_gradients(grads, golden, table):
    """Every leaf to 1e-4 relative, none left out."""
    expected = goldens.under(golden, "grad", table)
    assert set(expected) == set(strict.flatten(grads))
    largest = max(np.linalg.norm(value) for value in expected.values())
    # The gradient of a key bias is zero: the softmax ignores a constant.
    distances = goldens.distances(grads, expected, floor=1e-3 * largest)
    assert max(distances.values()) < 1e-4, distances


@pytest.mark.parametrize("name", NAMES)
def test_masked_lm_gives_the_states_logits_loss_and_gradients_of_transformers(name):
    golden = goldens.read(f"mlm_{name}")
    table = goldens.text_names(name, "mlm")
    model = goldens.build_text(name, "mlm")
    params = goldens.params(golden, text_inputs.MLM, table)
    arrays = text_inputs.batch(name)
    seen = text_inputs.masked_tokens(arrays)
    # The batch brings its own mask, so the objective is under test too.
    given = batch(name, hidden=masking.Hidden(seen, arrays["hidden"] == 1))
    config = defaults.mlm(text_inputs.MASK_TOKEN) | dict(max_masked_fraction=0.4)
    every_BL = np.broadcast_to(np.arange(seen.shape[1]), seen.shape)

    def outputs(apply):
        text = given["text"]._replace(tokens_BL=seen)
        return apply(text, method="encode"), apply(text, every_BL)

    (states, logits_BLV), loss, grads = run(config, model, params, given, outputs)
    real_BL = arrays["real"] == 1  # what transformers has at padding means nothing
    stored = [golden[key] for key in sorted(golden) if key.startswith("state_")]
    for state_BLD, expected in zip(states, stored, strict=True):
        np.testing.assert_allclose(
            state_BLD[real_BL], expected[real_BL], atol=1e-5, rtol=0
        )
    np.testing.assert_allclose(
        logits_BLV[real_BL], golden["logits"][real_BL], atol=1e-5, rtol=0
    )
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-5, rtol=0)
    assert_same_gradients(grads, golden, table)


@pytest.mark.parametrize("name", NAMES)
def test_classifier_gives_the_logits_loss_and_gradients_of_transformers(name):
    golden = goldens.read(f"text_classify_{name}")
    table = goldens.text_names(name, "classify")
    logits_BN, loss, grads = run(
        defaults.classify(),
        goldens.build_text(name, "classify"),
        goldens.params(golden, text_inputs.CLASSIFIER, table),
        batch(name, label=text_inputs.labels(name)),
        lambda apply: apply(batch(name)["text"]),
    )
    np.testing.assert_allclose(logits_BN, golden["logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-5, rtol=0)
    assert_same_gradients(grads, golden, table)


@pytest.mark.parametrize("name", NAMES)
def test_regression_gives_the_numbers_and_the_loss_of_transformers(name):
    golden = goldens.read(f"text_regress_{name}")
    table = goldens.text_names(name, "classify")
    logits_B1, loss, _ = run(
        defaults.regress(),
        goldens.build_text(name, "classify", num_classes=1),
        goldens.params(golden, text_inputs.REGRESSION, table),
        batch(name, label=text_inputs.numbers(name)),
        lambda apply: apply(batch(name)["text"]),
    )
    np.testing.assert_allclose(logits_B1, golden["logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_folder_of_transformers_comes_back_bit_for_bit(tmp_path, name):
    folder = goldens.FOLDER / "texts" / name
    model, params, report = weights.from_pretrained(folder, "mlm")
    assert not report.fresh
    assert not report.ignored
    assert not report.assumed
    weights.save_pretrained(tmp_path / "a", model, params)
    old, new = (load_file(at / "model.safetensors") for at in (folder, tmp_path / "a"))
    assert set(old) == set(new)
    for tensor, value in old.items():
        np.testing.assert_array_equal(new[tensor], value, err_msg=tensor)
    theirs, ours = (
        json.loads((at / "config.json").read_text()) for at in (folder, tmp_path / "a")
    )
    for field in (
        "architectures",
        "model_type",
        *text_inputs.hugging_face_config(name),
    ):
        same = ours[field] == theirs[field]
        assert same or field in ACTIVATIONS or "dropout" in field, field
