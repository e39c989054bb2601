"""Each penalty against NumPy, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from support.tiny_glad import at_start
from support.tiny_penalties import (
    FIRST,
    FRESH,
    batch_of,
    given,
    keys_of,
    model_of,
    section,
)

from flax_adapt.base import keys, rules
from flax_adapt.objectives import parameter_penalties as of_parameters
from flax_adapt.objectives import penalties
from flax_adapt.objectives import prediction_penalties as of_predictions
from flax_adapt.surgery import adaptors

pytestmark = pytest.mark.usefixtures("compile_fast")


def penalty(name, model, **changes):
    config = section(name, **changes)
    return penalties.PENALTIES[name].make(config, model, FRESH)


def f64(tree):
    return {name: np.float64(leaf) for name, leaf in rules.name_leaves(tree).items()}


def squares(ours, theirs, names):
    return sum(np.sum((ours[name] - theirs[name]) ** 2) for name in names)


@pytest.fixture(scope="module")
def classifier():
    """(model, parameters, frozen, batch)"""
    model = model_of("classify")
    params = tiny.params_of(model)
    batch = batch_of("classify")
    batch["weight"][[1, 5]] = 0  # of the target and of the source
    return model, params, given(params), batch


def test_penalties_on_parameters_equal_numpy(classifier):
    model, params, frozen, batch = classifier
    w, w0 = f64(params), f64(frozen["start"])
    known = [name for name in w if name not in FRESH]
    held = {part: f64(tree) for part, tree in frozen["ewc"].items()}
    expected = {
        "weight_distance": squares(w, w0, known),
        "l2_sp": 0.4 / 2 * squares(w, w0, known)
        + 0.2 / 2 * sum(np.sum(w[name] ** 2) for name in FRESH),
        "ewc": sum(
            np.sum(held["fisher"][name] * (w[name] - held["center"][name]) ** 2)
            for name in held["fisher"]
        ),
    }
    for name, value in expected.items():
        found = penalty(name, model)(params, frozen, batch, None)
        np.testing.assert_allclose(found.value(), value, rtol=1e-5, err_msg=name)
        assert found.count == 1
    assert "head/kernel" not in held["fisher"]


def test_the_sum_of_squares_by_hand(strict_dtypes):
    ours, theirs = ({"a": jnp.float32(w), "b": jnp.ones(2)} for w in ([1, 2], [3, 5]))
    assert of_parameters.square_distance(ours, theirs, ["a"]) == 13
    assert of_parameters.square_distance(ours, theirs, []) == 0


def test_symmetric_kl_by_hand(strict_dtypes):
    logits, others = jnp.zeros((2, 2)), jnp.float32([[np.log(3), 0], [0, 0]])
    found = of_predictions.symmetric_kl(logits, others)
    np.testing.assert_allclose(found, [np.log(3) / 4, 0], rtol=1e-5, atol=1e-7)


def test_distillation_by_hand(strict_dtypes):
    old, new = jnp.float32([[2 * np.log(3), 0]]), jnp.zeros((1, 2))
    expected = 4 * (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5))
    found = of_predictions.distillation(old, new, 2.0)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
    np.testing.assert_allclose(
        of_predictions.distillation(old, old, 2.0), [0], atol=1e-6
    )


def softmax(logits_BN):
    e_BN = np.exp(np.float64(logits_BN) - np.max(logits_BN, axis=-1, keepdims=True))
    return e_BN / e_BN.sum(axis=-1, keepdims=True)


def weighted(values_B, weight_B):
    return np.sum(values_B * weight_B) / np.sum(weight_B)


@pytest.mark.parametrize("noise", of_predictions.NOISES)
@pytest.mark.parametrize("name", ["classify", "classify_text"])
def test_r3f_compares_with_the_model_under_noise(name, noise):
    """The noised pass is the model's, told the very same noise."""
    model, batch = model_of(name), batch_of(name)
    batch["weight"][2] = 0
    params, key_B, drawn = tiny.params_of(model), keys_of(batch), []

    def mix(x_BLD):
        key = keys.fold(key_B, of_predictions._NOISE)
        noise_BLD = keys.draw(of_predictions.NOISES[noise], key, x_BLD.shape[1:])
        drawn.append(noise_BLD)
        return x_BLD + noise_BLD

    inputs = batch[model.modality]
    p, q = (
        softmax(model.apply({"params": params}, inputs, None, m)) for m in (None, mix)
    )
    expected = np.sum((p - q) * (np.log(p) - np.log(q)), axis=-1)
    # A noise as large as the states: rounding of logits is nothing beside it.
    found = penalty("r3f", model, noise=noise, eps=1.0)(params, {}, batch, key_B)
    np.testing.assert_allclose(
        found.value(), weighted(expected, batch["weight"]), rtol=1e-5
    )
    assert found.value() > 1e-2
    assert found.count == 11
    spread = np.std(drawn[0])
    assert spread == pytest.approx(1 if noise == "normal" else 3**-0.5, rel=0.1)
    assert len(np.unique(drawn[0])) > 0.99 * drawn[0].size  # no two examples alike


def test_r3f_without_noise_and_dropout_is_zero_and_two_passes_drop_other_units():
    batch = batch_of("classify")
    params, key_B = tiny.params_of(model_of("classify")), keys_of(batch)
    values = {
        dropout: penalty("r3f", model_of("classify", dropout), eps=1e-9)(
            params, {}, batch, key_B
        ).value()
        for dropout in (0.0, 0.3)
    }
    assert values[0.0] < 1e-8
    assert values[0.3] > 1e-4


@pytest.mark.parametrize(
    ("ours", "old", "same"),
    [
        (at_start, adaptors.drop, True),  # adaptors that do nothing yet
        (dict, adaptors.drop, False),
        (dict, dict, True),
    ],
)
def test_an_old_classifier_has_the_adaptors_that_come_with_it_or_none(ours, old, same):
    model, batch = model_of("glad"), batch_of("glad")
    params = tiny.params_of(model)
    given = ours(params), {"lwf": old(params)}, batch, keys_of(batch)
    found = penalty("lwf", model)(*given).value()
    assert found < 1e-6 if same else found > 1e-4


@pytest.mark.parametrize("classes", [3, 2])
def test_lwf_equals_numpy_also_where_the_head_has_grown(classifier, classes):
    model, params, frozen, batch = classifier
    old = {**frozen["lwf"], "head": jax.tree.map(lambda leaf: leaf[..., :classes],
                                                 frozen["lwf"]["head"])}  # fmt: skip
    logits = [
        np.float64(
            model.clone(num_classes=n).apply({"params": p}, batch["image"], None)
        )
        for p, n in ((old, classes), (params, 3))
    ]
    p, q = softmax(logits[0] / 2), softmax(logits[1][:, :classes] / 2)
    expected = weighted(4 * np.sum(p * np.log(p / q), axis=-1), batch["weight"])
    found = penalty("lwf", model)(params, {"lwf": old}, batch, keys_of(batch))
    np.testing.assert_allclose(found.value(), expected, rtol=1e-4)
    assert found.count == 10


def test_replay_of_labels_and_of_logits_equals_numpy(classifier):
    model, params, frozen, batch = classifier
    logits = np.float64(model.apply({"params": params}, batch["image"], None))
    weight = batch["weight"] * (batch["domain"] == 1)
    assert weight.sum() == 3
    chosen = softmax(logits)[np.arange(12), batch["label"]]
    stored = frozen["der"]["logits"][np.where(weight > 0, batch["index"] - FIRST, 0)]
    expected = {
        "er": weighted(-np.log(chosen), weight),
        "der": weighted(np.mean((logits - stored) ** 2, axis=-1), weight),
    }
    for name, value in expected.items():
        found = penalty(name, model)(params, frozen, batch, keys_of(batch))
        np.testing.assert_allclose(found.value(), value, rtol=1e-4, err_msg=name)
        assert found.count == 3
