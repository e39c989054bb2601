"""Contrast on any number of devices, what it carries along, what it draws and refuses."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from support.depth import long_except
from support.tiny_contrast import (
    HEADS,
    batch_of,
    keys_of,
    model_of,
    parameters,
    section,
)

from flax_adapt.base import keys
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import CARRY_INPUT
from flax_adapt.models import bert
from flax_adapt.objectives import contrast
from flax_adapt.train import sharding

MESHES = {
    "one": dict(data=1, fsdp=1, tensor=1),
    "data": dict(data=8, fsdp=1, tensor=1),
    "all": dict(data=2, fsdp=2, tensor=2),
}


def mesh_of(name):
    sizes = MESHES[name]
    return sharding.make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])


# Every batch norm makes rounding larger: one in the projector, one in the predictor.
SHALLOW = {"moco_v3": dict(layers=1, predictor_layers=1), "moco_v2": {}}


@functools.cache
def gradients_on(name, form):
    """(loss, gradients, what is carried after the step), of mixed queries."""
    mesh, config = mesh_of(name), section(form, reading="imix")
    model = model_of(form, projector=HEADS[form] | SHALLOW[form])
    loss_fn = contrast.make_loss(config, model, train=True)
    carry = contrast.make_carry(config, 10)

    @jax.jit
    def run(params, carried, batch):
        key_B = keys.example_keys(jax.random.key(0), batch["position"])
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = grad_fn(params, carried, batch, key_B)
        handed = metrics.get(CARRY_INPUT, {})
        return loss, grads, carry.update(carried, params, handed, jnp.int32(2))

    params, other = (tiny.params_of(model, seed) for seed in (0, 1))
    carried = sharding.put(carry.init(other, jax.random.key(5)), mesh)
    if form == "moco_v2" and name != "one":
        assert not carried["queue"].sharding.is_fully_replicated
    batch = sharding.put_batch(batch_of(), mesh)
    return jax.tree.map(np.asarray, run(sharding.put(params, mesh), carried, batch))


@pytest.mark.parametrize("mesh", long_except(["all"], ["data", "all"]))
@pytest.mark.parametrize("form", HEADS)
def test_loss_gradients_and_queue_do_not_depend_on_the_devices(form, mesh):
    ours, one = gradients_on(mesh, form), gradients_on("one", form)
    for tree, theirs in zip(ours, one, strict=True):
        # Some gradients are zero but for rounding: a batch norm follows a bias.
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
        close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6 * scale)
        jax.tree.map(close, tree, theirs)


def small(value):
    """Parameters of which every number is `value`."""
    kernel = jnp.full((4, 3), value, jnp.float32)
    return {
        "encoder": {"norm": {"scale": jnp.full(4, value, jnp.float32)}},
        "projector": {"layer_0": {"kernel": kernel}},
        "predictor": {"layer_0": {"kernel": kernel}},
    }


@pytest.mark.parametrize(
    ("schedule", "step", "m"),
    [
        ("constant", 0, 0.9),
        ("constant", 5, 0.9),
        ("cosine", 0, 0.9),
        ("cosine", 5, 0.95),  # half-way
        ("cosine", 2, 1 - 0.1 * (1 + np.cos(np.pi / 5)) / 2),
        ("cosine", 10, 1),
    ],
)
def test_the_key_encoder_is_a_moving_average_by_hand(strict_dtypes, schedule, step, m):
    config = section(momentum=0.9, momentum_schedule=schedule)
    carry = contrast.make_carry(config, 10)
    carried = carry.init(small(2), jax.random.key(0))
    assert set(carried["key_encoder"]) == {"encoder", "projector"}
    after = carry.update(carried, small(5), None, jnp.int32(step))
    for leaf in jax.tree.leaves(after):
        np.testing.assert_allclose(leaf, m * 2 + (1 - m) * 5, rtol=1e-6)


def test_keys_replace_the_oldest_and_none_where_they_do_not_count(strict_dtypes):
    config = section("moco_v2", queue_size=6)
    carry = contrast.make_carry(config, 10)
    carried = carry.init(small(1), jax.random.key(0))
    assert carried["queue"].shape == (6, 3)
    np.testing.assert_allclose(np.linalg.norm(carried["queue"], axis=1), 1, rtol=1e-6)
    other = carry.init(small(1), jax.random.key(1))["queue"]
    assert not np.any(carried["queue"] == other)
    expected = np.array(carried["queue"])
    rng = np.random.default_rng(0)
    update = jax.jit(carry.update)
    for step in range(1, 6):
        key_BD = rng.standard_normal((2, 3), np.float32)
        weight_B = np.float32([step != 4, 1])
        handed = {"queue": {"key_BD": key_BD, "weight_B": weight_B}}
        carried = update(carried, small(1), handed, jnp.int32(step))
        for row in range(2):
            if weight_B[row]:
                expected[(2 * (step - 1) + row) % 6] = key_BD[row]
        np.testing.assert_array_equal(carried["queue"], expected)


@pytest.mark.parametrize("train", [True, False])
def test_every_pass_of_a_text_drops_something_else_and_evaluation_nothing(train):
    model, seen = model_of("moco_v3", "text", dropout=0.5), []

    def record(call, arguments, options, context):
        result = call(*arguments, **options)
        if isinstance(context.module, bert.Encoder) and arguments:
            seen.append((arguments[1], np.asarray(result[0])))
        return result

    loss_fn = contrast.make_loss(section(reading="unmix"), model, train)
    given = parameters("moco_v3", "text")
    with nn.intercept_methods(record):
        loss_fn(*given, batch_of("text"), keys_of())
    if not train:
        assert [key_B for key_B, _ in seen] == [None] * 4
        return
    # Keys and queries of two views, and the mixed queries.
    drawn = {np.asarray(jax.random.key_data(key_B)).tobytes() for key_B, _ in seen}
    dropped = {(x_BLD == 0).tobytes() for _, x_BLD in seen}
    assert len(drawn) == len(dropped) == len(seen) == 6


@pytest.mark.parametrize(
    ("form", "changes", "text"),
    [
        ("moco_v1", {}, "objective.form='moco_v1'.*moco_v2.*moco_v3"),
        ("moco_v3", dict(temperature=0.0), "objective.temperature=0.0 must be larger"),
        ("moco_v3", dict(momentum=1.5), r"objective.momentum=1.5 must lie in \[0, 1\]"),
        ("moco_v3", dict(momentum_schedule="step"), "momentum_schedule='step'.*cosine"),
        (
            "moco_v3",
            dict(queue_size=8),
            "queue_size=8 must be 0: 'moco_v3' has no queue",
        ),
        ("moco_v2", dict(queue_size=0), "objective.queue_size=0 must be at least 1"),
        ("moco_v3", dict(reading="both"), "objective.mixing.reading='both'.*imix"),
        (
            "moco_v3",
            dict(reading="imix", operator="add"),
            "mixing.operator='add'.*cutmix",
        ),
    ],
)
def test_errors_name_the_field_and_the_choices(form, changes, text):
    config = section(form, **changes)
    with pytest.raises(UserError, match=text):
        contrast.make_loss(config, model_of(), train=True)
    with pytest.raises(UserError, match=text):
        contrast.make_carry(config, 10)


def test_moco_v2_refuses_a_predictor():
    with pytest.raises(UserError, match="predictor_layers=2 must be 0: 'moco_v2'"):
        contrast.make_loss(section("moco_v2"), model_of("moco_v3"), train=True)


def test_a_queue_that_no_number_of_batches_fills_is_refused():
    carry = contrast.make_carry(section("moco_v2", queue_size=6), 10)
    carried = carry.init(small(1), jax.random.key(0))
    handed = {"queue": {"key_BD": jnp.ones((4, 3)), "weight_B": jnp.ones(4)}}
    with pytest.raises(UserError, match="queue_size=6 must be a multiple of the 4"):
        carry.update(carried, small(1), handed, jnp.int32(1))
