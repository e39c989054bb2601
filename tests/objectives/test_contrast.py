"""Contrast: losses against NumPy; what is mixed, and to whom gradients flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_contrast import (
    ARCHITECTURES,
    DIRECTIONS,
    HEADS,
    SIZE,
    TAU,
    WEIGHT_B,
    batch_of,
    keys_of,
    model_of,
    parameters,
    section,
)

from flax_adapt.base import keys
from flax_adapt.base.types import CARRY_INPUT
from flax_adapt.objectives import contrast, info_nce, mixing


def plain_views(batch):
    two = [batch["text"]] * 2 if "text" in batch else batch["views"]
    return [(view,) for view in two]


def mixed_views(batch, mixes):
    """(views, partner_B, lam_B) by `mixing`, with the keys that the objective gives it."""
    key_B = keys.fold(keys_of(), contrast._MIX)
    partner_B = mixing.partner_rows(batch["domain"], WEIGHT_B, key_B, mixes.pairing)
    if "views" in batch:
        mixed = [
            mixing.mix_images(view, partner_B, key_B, mixes) for view in batch["views"]
        ]
        return [(view,) for view, _ in mixed], (partner_B, mixed[0][1])
    text = batch["text"]
    drawn = mixing.mix_tokens(text.segments_BL, partner_B, key_B, mixes)
    own_BL1 = drawn.own_BL[..., None]

    def mix(x_BLD):
        return own_BL1 * x_BLD + (1 - own_BL1) * x_BLD[partner_B]

    view = (text._replace(segments_BL=drawn.segments_BL), mix)
    return [view] * 2, (partner_B, drawn.lam_B)


def encoded(model, params, views, method):
    """Of each view; not normalised."""
    return [
        model.apply({"params": params}, inputs, None, WEIGHT_B, *mix, method=method)
        for inputs, *mix in views
    ]


@functools.cache
def outcome(form, modality="image", *, train=True, **mixes):
    """(loss, metrics, embeddings, labels) of one program; nothing is dropped.

    embeddings: {"plain", "mixed"} -> (queries, keys), each of two views.
    """
    config, model = section(form, **mixes), model_of(form, modality)
    loss_fn = contrast.make_loss(config, model, train)

    def run(params, carried, batch):
        views, labels = {"plain": plain_views(batch)}, ()
        if mixes:
            views["mixed"], labels = mixed_views(batch, config.mixing)
        embeddings = {
            name: (
                encoded(model, params, each, "__call__"),
                encoded(model, carried["key_encoder"], each, "project"),
            )
            for name, each in views.items()
        }
        return *loss_fn(params, carried, batch, keys_of()), embeddings, labels

    return jax.jit(run)(*parameters(form, modality), batch_of(modality))


def unit(x_VBD):
    x_VBD = np.asarray(x_VBD, np.float64)
    return x_VBD / np.linalg.norm(x_VBD, axis=-1, keepdims=True)


def reference(form, modality, queries, found, labels=None):
    """(loss, accuracy): row by row in float64 NumPy, from definitions alone."""
    rows, losses, right = np.flatnonzero(WEIGHT_B), [], []
    partner_B, lam_B = labels or (np.arange(SIZE), np.ones(SIZE))
    queries_VBD, keys_VBD = unit(queries), unit(found)
    queue_KD = parameters(form, modality)[1].get("queue")

    def cross_entropy(query_D, key_BD, target):
        others = key_BD[[row for row in rows if row != target]]
        negatives = others if queue_KD is None else np.asarray(queue_KD, np.float64)
        if labels and queue_KD is not None:  # i-Mix, "mocon": both, for either label
            negatives = np.concatenate([others, negatives])
        logits = np.array([query_D @ key_BD[target], *(negatives @ query_D)]) / TAU
        return np.log(np.sum(np.exp(logits))) - logits[0], np.argmax(logits) == 0

    for one, other in DIRECTIONS[form]:
        for row in rows:
            given = (queries_VBD[one, row], keys_VBD[other])
            own, nearest = cross_entropy(*given, row)
            second, _ = cross_entropy(*given, int(partner_B[row]))
            losses.append(float(lam_B[row]) * own + (1 - float(lam_B[row])) * second)
            right.append(nearest)
    scale = 2 * TAU if form == "moco_v3" else 1
    return scale * np.sum(losses) / len(rows), np.mean(right)


@pytest.mark.parametrize("modality", ARCHITECTURES)
@pytest.mark.parametrize("form", HEADS)
def test_the_loss_equals_numpy_and_leaves_out_rows_of_weight_0(form, modality):
    loss, metrics, embeddings, _ = outcome(form, modality)
    expected, accuracy = reference(form, modality, *embeddings["plain"])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics["loss"].value() == metrics["contrast"].value() == loss
    assert metrics["contrast"].count == WEIGHT_B.sum()
    measured = metrics["contrast_accuracy"].value()
    np.testing.assert_allclose(measured, accuracy, rtol=1e-6)


def test_keys_are_handed_over_in_training_where_there_is_a_queue():
    assert CARRY_INPUT not in outcome("moco_v3")[1]
    assert CARRY_INPUT not in outcome("moco_v2", train=False)[1]
    _, metrics, embeddings, _ = outcome("moco_v2")
    _, key_VBD = embeddings["plain"]
    handed = metrics[CARRY_INPUT]["queue"]
    np.testing.assert_allclose(handed["key_BD"], unit(key_VBD)[1], atol=1e-6)
    np.testing.assert_array_equal(handed["weight_B"], WEIGHT_B)


@pytest.mark.parametrize(
    ("form", "modality", "operator"),
    [
        ("moco_v3", "image", "mixup"),
        ("moco_v3", "text", "cutmix"),
        ("moco_v2", "image", "cutmix"),
        ("moco_v2", "text", "mixup"),
    ],
)
def test_mixed_queries_have_the_keys_of_both_as_targets(form, modality, operator):
    loss, metrics, embeddings, labels = outcome(
        form, modality, reading="imix", operator=operator
    )
    found = (embeddings["mixed"][0], embeddings["plain"][1])
    expected, accuracy = reference(form, modality, *found, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    measured = metrics["contrast_accuracy"].value()
    np.testing.assert_allclose(measured, accuracy, rtol=1e-6)
    assert np.any(labels[1][WEIGHT_B > 0] < 0.9)


@pytest.mark.parametrize("modality", ARCHITECTURES)
def test_unmix_adds_the_loss_of_the_mixed_queries_to_that_of_the_plain(modality):
    loss, metrics, embeddings, labels = outcome("moco_v3", modality, reading="unmix")
    plain, accuracy = reference("moco_v3", modality, *embeddings["plain"])
    found = (embeddings["mixed"][0], embeddings["plain"][1])
    mixed, _ = reference("moco_v3", modality, *found, labels)
    np.testing.assert_allclose(loss, plain + mixed, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"].value(), loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["contrast"].value(), plain, rtol=1e-6)
    measured = metrics["contrast_accuracy"].value()
    np.testing.assert_allclose(measured, accuracy, rtol=1e-6)


def test_a_mixed_text_that_is_an_instance_is_the_query_and_the_key():
    loss, _, embeddings, _ = outcome("moco_v3", "text", reading="instance")
    expected, _ = reference("moco_v3", "text", *embeddings["mixed"])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_nothing_is_mixed_in_evaluation_and_images_only_before_their_views():
    plain = outcome("moco_v3")[0]
    for mixes in (dict(train=False, reading="imix"), dict(reading="instance")):
        np.testing.assert_allclose(outcome("moco_v3", **mixes)[0], plain, rtol=1e-6)


def test_info_nce_by_hand(strict_dtypes):
    two = jnp.eye(2)
    found = info_nce.Keys(two, jnp.ones(2), None)
    rows_B = jnp.arange(2, dtype=jnp.int32)
    for each_B, expected, right in (
        (rows_B, np.log1p(np.exp(-1)), True),
        (rows_B[::-1], np.log1p(np.exp(1)), False),
    ):
        error_B, nearest_B = info_nce.info_nce(two, found, each_B, "moco_v3", 1.0)
        np.testing.assert_allclose(error_B, [expected] * 2, rtol=1e-6)
        assert nearest_B.tolist() == [right] * 2
    assert info_nce.normalize(jnp.array([[3.0, 4.0], [0, 0]])).tolist() == [
        pytest.approx([0.6, 0.8]),
        [0, 0],
    ]


def test_soft_labels_with_a_queue_by_hand(strict_dtypes):
    """Two rows and one queued key, lam 3/4: every denominator has all three keys."""
    found = info_nce.Keys(jnp.eye(2), jnp.ones(2), jnp.float32([[0, -1]]))
    soft = info_nce.Soft(jnp.int32([1, 0]), jnp.float32([0.75, 0.75]))
    loss, _ = info_nce.measure([(jnp.eye(2), found)], soft, "moco_v2", 1.0)
    totals = np.exp([[1, 0, 0], [0, 1, -1]]).sum(axis=1)  # row 1: its own key is second
    expected = np.mean(np.log(totals) - 0.75)
    np.testing.assert_allclose(loss.value(), expected, rtol=1e-6)


@pytest.mark.parametrize("form", HEADS)
def test_gradients_are_finite_and_none_reaches_what_is_carried(form):
    loss_fn = contrast.make_loss(section(form), model_of(form), train=True)
    batch, counts_B = batch_of(), WEIGHT_B > 0
    views = [np.where(counts_B[:, None, None, None], v, 0) for v in batch["views"]]
    grad_fn = jax.jit(jax.grad(loss_fn, argnums=(0, 1), has_aux=True))
    (own, carried), _ = grad_fn(
        *parameters(form), batch | {"views": tuple(views)}, keys_of()
    )
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(carried))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(own))
    assert np.any(own["encoder"]["patch_embed"]["kernel"])
