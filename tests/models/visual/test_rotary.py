"""Rotary positions of patches: what they turn, when they vary, and how a model uses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from flax_adapt import models
from flax_adapt.base import keys, memory
from flax_adapt.base.errors import UserError
from flax_adapt.models.visual import rotary
from flax_adapt.models.visual.traits import Traits, make_fields
from flax_adapt.weights import reshape

FIELDS = make_fields(registers=1, cls_position=False, rotary_theta=100.0)
SIDE, HEAD = 3, 8


def turns(batch=2, key_B=None, visible_BV=None, **changes):
    own = Traits(**{**FIELDS, **changes})
    return np.asarray(rotary.turns(own, SIDE, HEAD, batch, key_B, visible_BV))


def test_cls_and_registers_are_not_turned():
    x_BLHK = jnp.asarray(np.random.default_rng(0).standard_normal((2, 11, 2, HEAD)))
    found = rotary.turn(x_BLHK, turns())
    np.testing.assert_array_equal(found[:, :2], x_BLHK[:, :2])
    assert np.abs(found[:, 2:] - x_BLHK[:, 2:]).min(axis=(2, 3)).max() > 0
    norms = (jnp.linalg.norm(x, axis=-1) for x in (found, x_BLHK))
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_a_product_depends_on_the_distance_of_two_patches_alone():
    q_K, k_K = np.random.default_rng(1).standard_normal((2, HEAD)).astype(np.float32)
    place = {"all": np.broadcast_to(q_K, (1, 11, 1, HEAD))}
    q_LK = rotary.turn(jnp.asarray(place["all"]), turns(1))[0, 2:, 0]
    k_LK = rotary.turn(jnp.broadcast_to(k_K, (1, 11, 1, HEAD)), turns(1))[0, 2:, 0]
    product = (q_LK @ k_LK.T).reshape(SIDE, SIDE, SIDE, SIDE)
    np.testing.assert_allclose(product[0, 0, 1, 1], product[1, 1, 2, 2], rtol=1e-4)
    np.testing.assert_allclose(product[0, 0, 0, 1], product[2, 1, 2, 2], rtol=1e-4)
    assert abs(product[0, 0, 0, 1] - product[0, 0, 1, 0]) > 1e-3


def test_visible_patches_have_the_angles_of_their_places():
    visible_BV = np.int32([[4, 0], [8, 3]])
    found, whole = turns(visible_BV=visible_BV), turns()
    for row, places in enumerate(visible_BV):
        np.testing.assert_array_equal(found[row, 2:], whole[row, 2 + places])


@pytest.mark.parametrize(
    "asked", [dict(rotary_shift=0.5), dict(rotary_jitter=2.0), dict(rotary_rescale=2.0)]
)
def test_coordinates_vary_in_training_alone_and_only_if_asked(asked):
    key_B = keys.example_keys(jax.random.key(0), jnp.arange(2))
    still, varied = turns(key_B=key_B), turns(key_B=key_B, **asked)
    np.testing.assert_array_equal(still, turns())
    np.testing.assert_array_equal(turns(**asked), still)
    assert np.abs(varied[0, 2:] - varied[1, 2:]).max() > 1e-3
    np.testing.assert_array_equal(varied[:, :2], still[:, :2])
    alone = turns(1, key_B=key_B[1:], **asked)
    np.testing.assert_allclose(alone[0], varied[1], rtol=1e-6)


def test_fields_that_only_vary_training_and_the_image_size_need_no_other_weights():
    model = {**tiny.MODEL, "traits": FIELDS}
    asked = {**model, "traits": {**FIELDS, "rotary_rescale": 2.0}, "image_size": 16}
    assert reshape.fixed_fields(asked) == reshape.fixed_fields(model)
    table = {**tiny.MODEL, "image_size": 16}
    assert reshape.fixed_fields(table) != reshape.fixed_fields(tiny.MODEL)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(rotary_theta=0.5), "rotary_theta=0.5 must be 0 .a table. or above 1"),
        (dict(rotary_jitter=0.5), "rotary_jitter=0.5 is a factor"),
        (dict(rotary_shift=-1.0), "rotary_shift=-1.0 must be at least 0"),
        (dict(rotary_theta=0.0, rotary_shift=1.0), "need a rotary_theta"),
    ],
)
def test_positions_that_no_model_has_are_refused(change, text):
    with pytest.raises(UserError, match=text):
        Traits(**{**FIELDS, **change})


def test_heads_of_odd_pairs_are_refused():
    with pytest.raises(UserError, match=r"6 features .* multiple of 4"):
        tiny.build("encoder", {**tiny.MODEL, "width": 12, "traits": FIELDS})


def test_blocks_as_one_recomputed_loop_compute_the_same():
    model = tiny.build("encoder", {**tiny.MODEL, "traits": FIELDS})
    params, image = tiny.params_of(model), tiny.batch_of(2)["image"]

    def total(params):
        return (model.apply({"params": params}, image, None)[0] ** 2).sum()

    saving = memory.bind(total, dict(remat="blocks", scan=True, logit_chunks=1))
    plain, saved = (jax.jit(jax.grad(run))(params) for run in (total, saving))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max())
        ),
        saved,
        plain,
    )


def test_a_model_of_any_image_size_has_the_same_parameters():
    configs = ({**tiny.MODEL, "traits": FIELDS, "image_size": size} for size in (8, 32))
    shapes = [
        jax.tree.map(
            lambda leaf: leaf.shape, models.init_params(model, jax.random.key(0))
        )
        for model in (tiny.build("encoder", config) for config in configs)
    ]
    assert shapes[0] == shapes[1]
