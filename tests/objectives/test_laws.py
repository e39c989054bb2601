"""Laws that every objective keeps, and hand-computed values of each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults, objectives
from flax_adapt.base import keys
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Layout
from flax_adapt.objectives import classify, reconstruct, states

RECONSTRUCT = defaults.reconstruct() | dict(hidden_ratio=0.5)
# Half of the tokens: tiny rows shall never have none to guess.
MLM = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=0.5)
FAMILY = {
    "reconstruct": RECONSTRUCT,
    "reconstruct_raw": RECONSTRUCT | dict(normalize_patches=False),
    "distill": defaults.distill() | dict(masked=RECONSTRUCT),
    "distill_tokens": defaults.distill()
    | dict(
        masked=RECONSTRUCT, state="tokens", layers=(0, -1), reduce="mean", weight=0.5
    ),
    "distill_mean": defaults.distill() | dict(masked=RECONSTRUCT, state="mean"),
    "mlm": MLM,
    "mlm_words": MLM | dict(whole_word=True, max_masked_fraction=1.0),
    "distill_mlm": defaults.distill(MLM),
    "classify_text": defaults.classify(),
    "regress_text": defaults.regress(),
    "classify": defaults.classify(),
    "classify_mixed": defaults.classify()
    | dict(label_smoothing=0.1, mixup_alpha=0.8, cutmix_alpha=1.0),
}
# Members that are fed text.
TEXTS = [name for name in FAMILY if "mlm" in name or "text" in name]
# Leaves that an objective does not train: fixed positions.
FIXED = {"reconstruct": "position", "distill": "position"}


@functools.cache  # every test of the family uses the same compiled losses
def make(name, *, train=True, dropout=0.2):
    config = ConfigDict(FAMILY[name])
    options = dict(arch={**tiny.MODEL, "depth": 1})
    if name in TEXTS:
        options = dict(arch={**tiny.TEXT_MODEL, "depth": 1}, pooling="pooler")
    classes = 1 if config.name == "regress" else 3
    model = tiny.build(
        objectives.task_of(config), dropout=dropout, num_classes=classes, **options
    )
    loss_fn = objectives.build(config, model, train=train)
    params = tiny.params_of(model)
    frozen = {"teacher": tiny.params_of(tiny.build("encoder", **options), seed=1)}
    return jax.jit(loss_fn), params, frozen


def batch_for(name):
    """Of its modality; packed rows where an objective takes them."""
    if name in TEXTS:
        return tiny.text_batch_of(packed="mlm" in name)
    return tiny.batch_of()


def keys_of(batch, seed=0):
    return keys.example_keys(jax.random.key(seed), batch["position"])


@pytest.mark.parametrize("name", FAMILY)
def test_loss_is_finite_and_the_metric_loss_is_the_loss(name):
    loss_fn, params, frozen = make(name)
    batch = batch_for(name)
    loss, metrics = loss_fn(params, frozen, batch, keys_of(batch))
    assert np.isfinite(loss)
    np.testing.assert_allclose(metrics["loss"].value(), loss, rtol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_gradient_reaches_every_trainable_leaf_and_no_frozen_one(name):
    loss_fn, params, frozen = make(name)
    batch = batch_for(name)
    grads, frozen_grads = jax.grad(lambda *a: loss_fn(*a)[0], (0, 1))(
        params, frozen, batch, keys_of(batch)
    )
    fixed = "no such leaf" if name in TEXTS else FIXED.get(name.split("_")[0], "none")
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        assert bool(np.any(leaf != 0)) == (not place.endswith(fixed)), place
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(frozen_grads))


@pytest.mark.parametrize("name", FAMILY)
def test_same_keys_give_the_same_loss_and_other_keys_another(name):
    loss_fn, params, frozen = make(name)
    batch = batch_for(name)
    first, again, other = (
        loss_fn(params, frozen, batch, keys_of(batch, seed))[0] for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("name", FAMILY)
def test_an_example_of_weight_zero_counts_for_nothing(name):
    loss_fn, params, frozen = make(name)
    batch = batch_for(name)
    batch["weight"][3] = 0
    changed = jax.tree.map(np.copy, batch)
    if name in TEXTS:
        changed["text"].tokens_BL[3] = 5
    elif name != "classify_mixed":  # there an undecodable image is zeros by contract
        changed["image"][3] = 7.0
    changed["label"][3] = -1
    # Row 3 is the partner of row 4 in mixing: neither its image nor its label may leak.
    losses = [loss_fn(params, frozen, b, keys_of(b))[0] for b in (batch, changed)]
    np.testing.assert_array_equal(*losses)


@pytest.mark.parametrize("name", FAMILY)
def test_evaluation_has_no_dropout(name):
    batch = batch_for(name)
    losses = []
    for dropout in (0.2, 0.5):
        loss_fn, params, frozen = make(name, train=False, dropout=dropout)
        losses.append(loss_fn(params, frozen, batch, keys_of(batch))[0])
    assert losses[0] == losses[1]


def test_only_the_encoder_gets_the_distillation_gradient():
    config = ConfigDict(defaults.distill())
    model = tiny.build("mae")
    params = tiny.params_of(model)
    frozen = {"teacher": tiny.params_of(tiny.build("encoder"), seed=1)}
    loss_fn = objectives.build(config, model)
    batch = tiny.batch_of()

    def distance(params):
        metrics = loss_fn(params, frozen, batch, keys_of(batch))[1]
        return metrics["distill"].value()

    grads = jax.jit(jax.grad(distance))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["decoder"]))
    assert np.any(grads["encoder"]["cls_token"])


@pytest.mark.parametrize("name", ["distill", "distill_tokens", "distill_mlm"])
def test_a_student_that_is_the_teacher_has_distance_zero(name):
    loss_fn, params, _ = make(name)  # dropout is for the masked pass alone
    batch = batch_for(name)
    _, metrics = loss_fn(params, {"teacher": params}, batch, keys_of(batch))
    assert metrics["distill"].value() == 0


def test_given_noise_replaces_the_drawn_mask():
    loss_fn, params, frozen = make("reconstruct", train=False)
    batch = tiny.batch_of()
    batch["noise"] = np.random.default_rng(0).random((8, 4), np.float32)
    losses = [loss_fn(params, frozen, batch, keys_of(batch, s))[0] for s in (0, 1)]
    assert losses[0] == losses[1]


def test_the_error_is_a_mean_over_the_patches_of_images_that_count(strict_dtypes):
    zeros_BUP = jnp.zeros((2, 1, 3))
    target_BUP = jnp.array([[[1.0, 2.0, 2.0]], [[5.0, 5.0, 5.0]]])
    loss = reconstruct.mean_error(zeros_BUP, target_BUP, jnp.float32([1, 0]))
    np.testing.assert_allclose(loss.value(), 9 / 3)


def test_patch_targets_use_the_unbiased_variance(strict_dtypes):
    image_BYXC = jnp.array([1.0, 2.0, 3.0, 6.0]).reshape(1, 2, 2, 1)
    # mean 3, squared deviations 4 1 0 9, divided by 3: variance 14/3
    expected = np.array([-2, -1, 0, 3]) / np.sqrt(14 / 3 + 1e-6)
    target_BLP = reconstruct.patch_targets(image_BYXC, 2, normalize=True)
    np.testing.assert_allclose(target_BLP[0, 0], expected, rtol=1e-6)


def image_layout(length):
    """CLS and patches of one image."""
    first_BL = jnp.arange(length)[None] == 0
    return Layout(jnp.ones((1, length), jnp.int32), first_BL, ~first_BL)


@pytest.mark.parametrize("name", ["distill", "distill_mlm"])
def test_what_mean_compares_is_what_pooling_by_mean_gives(name):
    if name in TEXTS:
        model, inputs = tiny.build("mlm", tiny.TEXT_MODEL), tiny.text_of((12,), (7,))
    else:
        model, inputs = tiny.build("mae"), tiny.batch_of(2)["image"]
    params = {"params": tiny.params_of(model)}
    pooled = model.apply(params, inputs, "mean", method="embed")
    encoded = model.apply(params, inputs, None, method="encode")[-1]
    found, counts = states.STATES["mean"](encoded, model.layout(inputs))
    np.testing.assert_allclose(found[:, 0], pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(counts.sum(axis=1), [1, 1])


@pytest.mark.parametrize(
    ("state", "reduce", "expected"),
    [
        ("cls", "sum", 13.0),  # (1, 2) - (3, 5): 4 + 9
        ("cls", "mean", 6.5),
        ("tokens", "sum", (13.0 + 0.0 + 2.0) / 3),
        ("mean", "sum", 0.25 + 0.25),  # means (1/2, 1/2) apart
    ],
)
def test_state_distance_by_hand(state, reduce, expected, strict_dtypes):
    student = jnp.array([[[1.0, 2.0], [4.0, 4.0], [1.0, 1.0]]])
    teacher = jnp.array([[[3.0, 5.0], [4.0, 4.0], [0.0, 0.0]]])
    one, layout = jnp.ones(1), image_layout(3)
    distance = states.state_distance([student], [teacher], layout, one, state, reduce)
    np.testing.assert_allclose(distance.value(), expected, rtol=1e-6)


def test_layers_are_averaged(strict_dtypes):
    one, two = jnp.ones((1, 1, 2)), 2 * jnp.ones((1, 1, 2))
    zero, layout = jnp.zeros((1, 1, 2)), image_layout(1)
    distance = states.state_distance(
        [one, two], [zero, zero], layout, jnp.ones(1), "cls", "sum"
    )
    np.testing.assert_allclose(distance.value(), (2 + 8) / 2)


def test_smoothed_cross_entropy_by_hand(strict_dtypes):
    targets_BN = classify.smooth(jnp.array([0]), 2, 0.2)
    np.testing.assert_allclose(targets_BN, [[0.9, 0.1]], rtol=1e-6)
    logits_BN = jnp.log(jnp.array([[0.75, 0.25]]))
    expected = -(0.9 * np.log(0.75) + 0.1 * np.log(0.25))
    np.testing.assert_allclose(
        classify.cross_entropy(logits_BN, targets_BN), [expected], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(layers=(3,)), "objective.layers=.*states 0 to 2"),
        (dict(layers=()), "objective.layers"),
        (dict(state="all"), "objective.state='all' is unknown.*cls"),
        (dict(reduce="max"), "objective.reduce='max'.*mean.*sum"),
        (dict(name="guess"), "objective.name='guess'.*classify.*distill"),
    ],
)
def test_errors_name_the_field_and_the_choices(changes, text):
    config = ConfigDict(defaults.distill() | changes)
    with pytest.raises(UserError, match=text):
        objectives.build(config, tiny.build("mae"))
