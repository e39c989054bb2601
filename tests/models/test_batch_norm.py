"""Batch norm with running statistics: by hand, and on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_resnet

from flax_adapt import defaults, objectives
from flax_adapt.base.errors import UserError
from flax_adapt.models import batch_norm, batch_stats
from flax_adapt.train import optim, sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

pytestmark = pytest.mark.usefixtures("strict_dtypes", "compile_fast")


def normalized(x_BYXC, weight_B, running=None, momentum=0.25, eps=0.0):
    """(output, running mean and variance after it) of a layer with scale 2 and bias 1."""
    layer = batch_norm.RunningBatchNorm(eps, momentum, True, jnp.float32)
    channels = x_BYXC.shape[-1]
    kept = running or {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}
    params = {"scale": 2 * jnp.ones(channels), "bias": jnp.ones(channels)}
    variables = batch_stats.join({"params": params}, kept)
    output, moved = layer.apply(variables, x_BYXC, weight_B, mutable=[batch_stats.NAME])
    return output, moved[batch_stats.NAME]


# Two images of two pixels: mean 4, biased variance 5, unbiased 20 / 3.
PIXELS = jnp.array([[1.0, 3.0], [5.0, 7.0]]).reshape(2, 2, 1, 1)


def test_a_training_pass_by_hand():
    output, moved = normalized(PIXELS, jnp.ones(2))
    expected = 2 * (np.array([1, 3, 5, 7]) - 4) / np.sqrt(5) + 1
    np.testing.assert_allclose(output.ravel(), expected, rtol=1e-6)
    np.testing.assert_allclose(moved["mean"], [0.25 * 4], rtol=1e-6)
    np.testing.assert_allclose(moved["var"], [0.75 + 0.25 * 20 / 3], rtol=1e-6)


def test_evaluation_goes_by_the_running_statistics_and_leaves_them():
    running = {"mean": jnp.array([2.0]), "var": jnp.array([3.0])}
    output, moved = normalized(PIXELS, None, running, eps=1.0)
    expected = 2 * (np.array([1, 3, 5, 7]) - 2) / np.sqrt(4) + 1
    np.testing.assert_allclose(output.ravel(), expected, rtol=1e-6)
    assert moved == running


def test_rows_of_weight_zero_do_not_count_but_come_out_like_the_others():
    other = jnp.full((1, 2, 1, 1), 1e3)
    pixels = jnp.concatenate([PIXELS[:1], other, PIXELS[1:]])
    output, moved = normalized(pixels, jnp.array([1.0, 0.0, 1.0]))
    expected, alone = normalized(PIXELS, jnp.ones(2))
    np.testing.assert_allclose(output[::2], expected, rtol=1e-6)
    assert np.all(output[1] > 100)
    for name, value in alone.items():
        np.testing.assert_allclose(moved[name], value, rtol=1e-6)


def test_where_no_row_counts_nothing_moves():
    running = {"mean": jnp.array([2.0]), "var": jnp.array([3.0])}
    output, moved = normalized(PIXELS, jnp.zeros(2), running, eps=1e-5)
    assert np.all(np.isfinite(output))
    assert moved == running


def test_a_single_pixel_has_no_variance_but_is_no_division_by_zero():
    _, moved = normalized(jnp.full((1, 1, 1, 1), 5.0), jnp.ones(1), eps=1e-5)
    np.testing.assert_allclose(moved["var"], [0.75])


def test_a_large_mean_costs_no_digits():
    """As the difference of two sums the variance would be 0, or less than that."""
    x_BYXC = 4096 + PIXELS
    _, variance_C, count = batch_norm.moments(x_BYXC, jnp.ones(2))
    np.testing.assert_allclose(variance_C, [5], rtol=1e-6)
    assert count == 4


MESHES = {
    "one": dict(data=1, fsdp=1, tensor=1),
    "eight": dict(data=4, fsdp=2, tensor=1),
}
# Adam would make whole steps of rounding where the gradient is zero but for that.
TX = optax.sgd(0.01)
OBJECTIVES = {
    "classify": ConfigDict(defaults.classify()),
    "contrast": tiny_resnet.contrast_section(),
}


@functools.cache
def trained(name, mesh_name, num_steps=2):
    """What two steps leave: losses, parameters and what is carried, on the host."""
    sizes = MESHES[mesh_name]
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    mesh = sharding.make_mesh(sizes, devices)
    model = tiny_resnet.build(name, planes=[4], depths=[2])
    params, statistics = batch_stats.split(tiny_resnet.stored_of(model))
    carry = objectives.build_carry(OBJECTIVES[name], 8, statistics)
    state = states.create(params, TX, mesh, seed=3, carry=carry)
    loss_fn = objectives.build(OBJECTIVES[name], model)
    train_step = steps.make_train_step(loss_fn, TX, mesh, carry=carry)
    losses, first = [], jax.tree.map(np.array, state.extra)
    for number in range(num_steps):
        batch = sharding.put_batch(tiny_resnet.views_of(number), mesh)
        state, metrics = train_step(state, batch)
        losses.append(metrics["loss"].value())
    spread = state.params["encoder"]["stage_1"]["block_01"]["conv1"]["kernel"]
    assert spread.sharding.is_fully_replicated == (mesh_name == "one")
    statistics = jax.tree.leaves(state.extra[batch_stats.NAME])
    assert all(leaf.sharding.is_fully_replicated for leaf in statistics)
    return jax.tree.map(np.array, (losses, state.params, state.extra, first))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_is_the_same_on_any_number_of_devices(name):
    one, eight = trained(name, "one"), trained(name, "eight")
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max())
        ),
        *(eight, one),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_step_moves_every_running_statistic(name):
    """By more than the test above allows; and they are nothing that is trained."""
    *_, params, extra, first = trained(name, "one")
    assert batch_stats.NAME not in params
    moved = jax.tree.map(
        lambda new, old: np.abs(new - old).max(),
        *(tree[batch_stats.NAME] for tree in (extra, first)),
    )
    assert min(jax.tree.leaves(moved)) > 1e-4
    assert batch_stats.NAME not in extra.get("key_encoder", {})


def test_parts_of_a_batch_are_refused():
    carry = objectives.build_carry(OBJECTIVES["classify"], 8, {"a": jnp.ones(1)})
    mesh = sharding.make_mesh(MESHES["one"], jax.devices()[:1])
    with pytest.raises(UserError, match=r"optim.accum_steps=2 must be 1: .*batch norm"):
        steps.make_train_step(lambda *a: None, TX, mesh, 2, carry)


def test_the_tables_of_the_optimizer_cover_every_parameter():
    model = tiny_resnet.build("classify", last_block=tiny_resnet.RESIZED)
    params, _ = batch_stats.split(tiny_resnet.shapes(model))
    for decay in optim.DECAY:
        config = ConfigDict(defaults.pretrain_optim(decay=decay, freeze=()))
        optim.build(config, 5, params)
    config.layer_decay = 0.5
    with pytest.raises(UserError, match=r"optim.layer_decay=0.5 must be 1.0.*resnet"):
        optim.build(config, 5, params)


def test_statistics_that_are_missing_are_named():
    model = tiny_resnet.build("classify")
    params, _ = batch_stats.split(tiny_resnet.stored_of(model))
    loss_fn = objectives.build(OBJECTIVES["classify"], model)
    key_B = jax.random.split(jax.random.key(0), 8)
    with pytest.raises(UserError, match=r"running statistics .* are missing"):
        loss_fn(params, {}, tiny.batch_of(), key_B)
