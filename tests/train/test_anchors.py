"""RecAdam and MARS against NumPy, over several steps; new leaves are free."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from support import tiny
from support.tiny_meshes import WAYS, mesh_of

from flax_adapt import defaults, objectives
from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.train import anchors, optim, sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

NUM_STEPS = 6
RECALL = dict(gamma=8.0, k=1.5, t0=3.0)
FRESH = ("head/kernel", "head/bias")
LOOSE, TIGHT = 10.0, 0.25


def section(**changes):
    fields = dict(lr=0.1, warmup_steps=2, clip_norm=0.0, weight_decay=0.05)
    return ConfigDict(defaults.finetune_optim(**{**fields, **changes}))


def small(seed):
    """Parameters, or gradients of them: an encoder's kernel and scale, and a head."""
    rng = np.random.default_rng(seed)

    def layer():
        kernel, bias = rng.standard_normal((3, 2)), rng.standard_normal(2)
        return dict(kernel=np.float32(kernel), bias=np.float32(bias))

    return {
        "encoder": {"norm": {"scale": np.float32([1, 2])}, "a": layer()},
        "head": layer(),
    }


def run(config, fresh=FRESH, num_steps=NUM_STEPS):
    """Named leaves before the first and after every step; each has its own gradient."""
    params = jax.tree.map(jnp.asarray, small(0))
    tx = optim.build(config, NUM_STEPS, params, fresh)
    state, update = tx.init(params), jax.jit(tx.update)
    history = [rules.name_leaves(params)]
    for step in range(num_steps):
        updates, state = update(small(step + 1), state, params)
        params = optax.apply_updates(params, updates)
        history.append(rules.name_leaves(params))
    return history


def recadam_by_numpy(config, name, is_fresh, decays):
    """One leaf after every step, from the formula of docs/methods/baselines.md, in float64."""
    w = w0 = np.float64(rules.name_leaves(small(0))[name])
    m = v = np.zeros_like(w)
    schedule, found = optim.schedule(config, NUM_STEPS), []
    for t in range(1, NUM_STEPS + 1):
        g, lr = np.float64(rules.name_leaves(small(t))[name]), float(schedule(t - 1))
        m, v = (
            config.b1 * m + (1 - config.b1) * g,
            config.b2 * v + (1 - config.b2) * g * g,
        )
        lr_t = lr * np.sqrt(1 - config.b2**t) / (1 - config.b1**t)
        share = 1 / (1 + np.exp(-RECALL["k"] * (t - RECALL["t0"])))
        share = 1.0 if is_fresh else share
        w = w - lr_t * share * m / (np.sqrt(v) + config.eps)
        w = w - lr * (1 - share) * RECALL["gamma"] * (w - w0)
        w = w - lr * config.weight_decay * w * decays
        found.append(w)
    return found


@pytest.mark.parametrize(
    ("name", "is_fresh", "decays"),
    [
        ("encoder/a/kernel", False, True),
        ("encoder/a/bias", False, False),
        ("encoder/norm/scale", False, True),  # "finetune" decays scales
        ("head/kernel", True, True),
        ("head/bias", True, False),
    ],
)
def test_recadam_equals_numpy(name, is_fresh, decays):
    config = section(recadam=RECALL, b2=0.9, eps=0.01)
    history = run(config)
    expected = recadam_by_numpy(config, name, is_fresh, decays)
    assert np.abs(expected[-1] - history[0][name]).max() > 0.01
    for found, wanted in zip(history[1:], expected, strict=True):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-6)


def test_recadam_recalls_first_and_learns_later():
    """Before t0 the start is held, after it the gradient wins; new leaves never wait."""
    fields = dict(schedule="constant", warmup_steps=0, weight_decay=0.0)
    recall = dict(gamma=9.0, k=50.0, t0=3.5)
    history = run(section(recadam=recall, **fields))
    moved = [np.abs(h["encoder/a/kernel"] - history[0]["encoder/a/kernel"]).max()
             for h in history]  # fmt: skip
    assert max(moved[:4]) < 1e-6
    assert moved[4] > 0.05
    assert np.abs(history[1]["head/kernel"] - history[0]["head/kernel"]).max() > 0.05


def test_recadam_whose_start_does_not_count_is_adam():
    fields = dict(weight_decay=0.0, eps=1e-12)
    plain = run(section(**fields))[-1]
    recall = run(section(recadam=dict(gamma=0.0, k=50.0, t0=1e-6), **fields))[-1]
    for name, leaf in plain.items():
        np.testing.assert_allclose(recall[name], leaf, rtol=1e-5, atol=1e-6)


def test_mars_draws_each_output_unit_back_by_hand(strict_dtypes):
    start = jnp.float32([[1, 0], [0, 1]])
    w = start + jnp.float32([[3, 1], [1, -1]])
    # Units are columns: sums 4 and 2.
    for radius, moved in {
        2.0: [[1.5, 1], [0.5, -1]],
        1.0: [[0.75, 0.5], [0.25, -0.5]],
        LOOSE: [[3, 1], [1, -1]],
    }.items():
        found = anchors.project(w, start, radius) - start
        np.testing.assert_allclose(found, moved, rtol=1e-6)


def test_mars_sums_over_all_that_enters_a_unit_of_a_convolution(strict_dtypes):
    start = jnp.zeros((3, 3, 2, 4))
    found = anchors.project(jnp.ones((3, 3, 2, 4)), start, 9.0)
    np.testing.assert_allclose(found, 0.5)  # 18 numbers enter a unit


def test_every_step_under_mars_is_adam_and_then_the_projection():
    name, config = "encoder/a/kernel", section(mars_radius=TIGHT, weight_decay=0.0)
    history = run(config)
    start, w = (np.float64(history[0][name]) for _ in range(2))
    m = v = np.zeros_like(w)
    bound = False
    for t in range(1, NUM_STEPS + 1):
        g, lr = (
            rules.name_leaves(small(t))[name],
            float(optim.schedule(config, NUM_STEPS)(t - 1)),
        )
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        adam = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + config.eps)
        moved = w - lr * adam - start
        distance = np.abs(moved).sum(axis=0)
        bound = bound or np.any(distance > TIGHT)
        w = start + moved / np.maximum(1, distance / TIGHT)
        np.testing.assert_allclose(history[t][name], w, rtol=1e-4, atol=1e-6)
    assert bound


@pytest.mark.parametrize("num_steps", [100, 300, 1_000, 10_000])
def test_recadam_lets_the_weights_go_in_a_stage_of_any_length(num_steps):
    """The published t0 = 250 would hold all of a stage of 100 steps at its start."""
    k, t0 = anchors.recall_schedule(ConfigDict(defaults.recadam()), num_steps)
    opened = 1 / (1 + np.exp(-k * (num_steps - t0)))
    assert opened > 0.999
    assert t0 == min(250, num_steps / 4)
    assert k * t0 == pytest.approx(0.5 * 250)


def test_recadam_takes_k_and_t0_that_are_given_as_they_are():
    given = ConfigDict(defaults.recadam(t0=250.0, k=0.25))
    assert anchors.recall_schedule(given, 100) == (0.25, 250.0)


def test_mars_bounds_norms_and_the_new_head_as_the_official_code():
    """Each scale by itself around its start, a new kernel around zero; biases are free."""
    config = section(mars_radius=TIGHT, mars_head_radius=0.5, mars_norms=True, lr=1.0)
    free, bound = run(section(lr=1.0))[-1], run(config)[-1]
    differs = {name for name in free if np.any(free[name] != bound[name])}
    assert differs == {"encoder/a/kernel", "encoder/norm/scale", "head/kernel"}
    moved = np.abs(bound["encoder/norm/scale"] - small(0)["encoder"]["norm"]["scale"])
    np.testing.assert_allclose(
        moved, TIGHT, rtol=1e-5
    )  # two numbers, each at the bound
    assert np.abs(bound["head/kernel"]).sum(axis=0) == pytest.approx(0.5, rel=1e-5)


def test_mars_bounds_known_kernels_and_nothing_else_if_that_is_all_that_is_given():
    free, bound = run(section())[-1], run(section(mars_radius=TIGHT))[-1]
    differs = {name for name in free if np.any(free[name] != bound[name])}
    assert differs == {"encoder/a/kernel"}
    without = run(section(mars_radius=TIGHT), fresh=())[-1]
    distance = np.abs(without["head/kernel"] - small(0)["head"]["kernel"]).sum(axis=0)
    np.testing.assert_allclose(distance, TIGHT, rtol=1e-5)


def test_mars_holds_what_recadam_and_layer_decay_give():
    config = section(mars_radius=TIGHT, recadam=RECALL, layer_decay=0.9, clip_norm=1.0)
    params = tiny.params_of(tiny.build("classify"))
    tx = optim.build(config, NUM_STEPS, params, FRESH)
    grads, state, now = jax.tree.map(jnp.ones_like, params), tx.init(params), params
    update = jax.jit(tx.update)
    for _ in range(NUM_STEPS):
        updates, state = update(grads, state, now)
        now = optax.apply_updates(now, updates)
    start, end = rules.name_leaves(params), rules.name_leaves(now)
    distances = [np.abs(end[name] - start[name]).sum(axis=0) for name in start
                 if name.startswith("encoder") and name.endswith("kernel")]  # fmt: skip
    assert max(map(np.max, distances)) == pytest.approx(TIGHT, rel=1e-4)


@functools.cache
def train(mesh_name, accum_steps=1):
    mesh = mesh_of(mesh_name)
    model = tiny.build("classify")
    params = tiny.params_of(model)
    # eps far above the rounding of a gradient that is zero: a key's bias.
    fields = dict(recadam=RECALL, mars_radius=TIGHT, eps=1e-3, lr=0.01)
    tx = optim.build(section(**fields), NUM_STEPS, params, FRESH)
    state = states.create(params, tx, mesh, seed=0)
    loss_fn = objectives.build(ConfigDict(defaults.classify()), model)
    step = steps.make_train_step(loss_fn, tx, mesh, accum_steps)
    for number in range(3):
        state, _ = step(state, sharding.put_batch(tiny.batch_of(16, number), mesh))
    return state


@pytest.mark.parametrize(("mesh", "accum_steps"), WAYS)
def test_neither_depends_on_devices_or_on_parts(mesh, accum_steps):
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    ours, theirs = train(mesh, accum_steps), train("one")
    jax.tree.map(close, jax.device_get(ours.params), jax.device_get(theirs.params))


# Under debug_nans JAX donates nothing: `nans_allowed` turns it off.
def test_the_start_is_laid_out_like_the_parameters_and_outlives_them(nans_allowed):
    state = train.__wrapped__("eight")
    found = dict(rules.name_leaves(state.opt_state))
    starts = [
        name for name in found if "/start/" in name and name.endswith("up/kernel")
    ]
    assert len(starts) == 4  # two blocks, for RecAdam and for MARS
    first = tiny.params_of(tiny.build("classify"))["encoder"]["block_00"]["mlp"]["up"]
    for name in starts:
        assert found[name].addressable_shards[0].data.shape == (8, 16)
        if "block_00" in name:
            np.testing.assert_array_equal(found[name], first["kernel"])


def test_the_start_has_buffers_of_its_own():
    """Those of the parameters are donated to the first step."""
    params = jax.tree.map(jnp.asarray, small(0))
    tx = optim.build(section(recadam=RECALL, mars_radius=1.0), 10, params)
    named = rules.name_leaves(tx.init(params))
    starts = [leaf for name, leaf in named.items() if "/start/" in name]
    places = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
    assert len(starts) == 5 + 2
    assert not places & {leaf.unsafe_buffer_pointer() for leaf in starts}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            dict(recadam=dict(gamma=5000.0, k=0.5, t0=250), lr=1e-3),
            r"optim.lr=0.001 x recadam.gamma=5000.0 = 5 must be below 1.*less than 0.0002",
        ),
        (dict(recadam=RECALL | dict(gamma=-1.0)), "optim.recadam: gamma=-1.0, k="),
        (dict(recadam=RECALL | dict(k=-1.0)), "optim.recadam: .* k=-1.0 and t0="),
        (dict(mars_radius=-1.0), "optim.mars_radius=-1.0 must be above 0, or 0"),
        (
            dict(mars_head_radius=1.0),
            "optim.mars_head_radius and mars_norms are parts of MARS: give mars_radius",
        ),
    ],
)
def test_errors_name_the_field(changes, text):
    with pytest.raises(UserError, match=text):
        optim.build(section(**changes), NUM_STEPS, small(0))
