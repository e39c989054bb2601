"""EMA weights against NumPy, what is carried together, and what averages leave alone."""

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
from flax_adapt.base import types
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Loss, Mean
from flax_adapt.base.types import AVERAGE, CARRY_INPUT, Carry
from flax_adapt.objectives import ema
from flax_adapt.train import sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

TOTAL = 6
TX = optax.sgd(0.5)
ROWS = {"position": np.arange(2, dtype=np.int32)}


def section(**changes):
    fields = dict(momentum=0.8, schedule="constant", warmup=False)
    return ConfigDict({**fields, **changes})


def momentum_at(schedule, step, warmup=False, num_steps=TOTAL, momentum=0.8):
    if schedule == "cosine":
        done = np.cos(np.pi * step / num_steps)
        momentum = 1 - (1 - momentum) * (1 + done) / 2
    return min(momentum, (1 + step) / (10 + step)) if warmup else momentum


@functools.cache
def train(schedule, mesh_name="one", accum_steps=1, num_steps=4, warmup=False):
    """[(parameters, extra)] before the first and after every step."""
    mesh = mesh_of(mesh_name)
    model = tiny.build("classify")
    loss_fn = objectives.build(ConfigDict(defaults.classify()), model)
    carry = ema.make_carry(section(schedule=schedule, warmup=warmup), TOTAL)
    params = tiny.params_of(model)
    state = states.create(params, TX, mesh, seed=0, carry=carry)
    step = steps.make_train_step(loss_fn, TX, mesh, accum_steps, carry)
    history = [jax.device_get((state.params, state.extra, state.evaluated))]
    for number in range(num_steps):
        batch = sharding.put_batch(tiny.batch_of(16, number), mesh)
        state, _ = step(state, batch)
        history.append(jax.device_get((state.params, state.extra, state.evaluated)))
    return history


@pytest.mark.parametrize(
    ("schedule", "warmup"), [("constant", False), ("cosine", False), ("cosine", True)]
)
def test_the_average_follows_the_parameters_as_numpy_says(schedule, warmup):
    history = train(schedule, warmup=warmup)
    average = jax.tree.map(np.float64, history[0][0])
    for step, (params, extra, evaluated) in enumerate(history):
        if step:
            m = momentum_at(schedule, step, warmup)
            average = jax.tree.map(
                lambda a, w, m=m: m * a + (1 - m) * w, average, params
            )
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        jax.tree.map(close, extra[AVERAGE], average)
        jax.tree.map(np.testing.assert_array_equal, evaluated, extra[AVERAGE])
    moved = jax.tree.map(lambda a, w: np.abs(a - w).max(), average, history[-1][0])
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("num_steps", [100, 300, 10_000])
def test_little_of_the_initial_weights_is_left_in_a_stage_of_any_length(num_steps):
    """By NumPy, of an initial weight of 1 among parameters of 0: a random head's, say."""
    config = ConfigDict(defaults.ema())
    carry = ema.make_carry(config, num_steps)
    expected = np.prod([momentum_at("cosine", step, True, num_steps, 0.99)
                        for step in range(1, num_steps + 1)])  # fmt: skip
    assert ema.share_of_start(config, num_steps) == pytest.approx(expected, abs=1e-6)
    average, zero = {AVERAGE: {"w": jnp.float32(1)}}, {"w": jnp.float32(0)}
    for step in range(1, min(num_steps, 100) + 1):
        average = carry.update(average, zero, {}, jnp.int32(step))
    assert average[AVERAGE]["w"] < 0.02


def test_without_a_warm_up_a_short_stage_keeps_its_initial_weights():
    config = ConfigDict(defaults.ema(warmup=False))
    assert ema.share_of_start(config, 100) == pytest.approx(0.61, abs=0.005)
    assert ema.share_of_start(config, 300) == pytest.approx(0.22, abs=0.005)
    constant = ConfigDict(defaults.ema(warmup=False, schedule="constant"))
    assert ema.share_of_start(constant, 100) == pytest.approx(0.99**100, abs=1e-5)


@pytest.mark.parametrize(("mesh", "accum_steps"), WAYS)
def test_the_average_depends_neither_on_devices_nor_on_parts(mesh, accum_steps):
    ours, theirs = train("cosine", mesh, accum_steps)[-1], train("cosine")[-1]
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(close, ours[1][AVERAGE], theirs[1][AVERAGE])


def test_without_an_average_the_parameters_are_evaluated():
    mesh = sharding.one_device()
    state = states.create({"head": {"bias": jnp.ones(2)}}, TX, mesh, seed=0)
    assert state.evaluated is state.params


def test_an_average_of_momentum_one_stays_where_it_began(strict_dtypes):
    carry = ema.make_carry(section(momentum=1.0), TOTAL)
    start = {"w": jnp.float32([1, 2])}
    carried = carry.init(start, jax.random.key(0))
    after = carry.update(carried, {"w": jnp.float32([5, 5])}, {}, jnp.int32(1))
    np.testing.assert_array_equal(after[AVERAGE]["w"], start["w"])


def counter(name, **options):
    """Carries the sum of what it is handed; of others' things it may see nothing."""

    def update(carried, params, handed, step):
        assert {*carried} == {name}
        assert {*handed} <= {name}
        return {name: carried[name] + handed.get(name, jnp.float32(100))}

    def init(params, key):
        return {name: jnp.float32(0)}

    return Carry((name,), init, update, **options)


def test_what_is_carried_together_is_handed_its_own_part_alone():
    carry = types.join_carries([counter("a"), counter("b")])
    carried = carry.init({}, jax.random.key(0))
    for step in (1, 2):
        handed = {"a": jnp.float32(step)}
        carried = carry.update(carried, {}, handed, jnp.int32(step))
    assert carry.names == ("a", "b")
    assert carried == {"a": 3, "b": 200}


def test_whole_batches_are_needed_where_one_of_several_needs_them():
    free = counter("a", whole_batches=False)
    assert not types.join_carries([free]).whole_batches
    assert not types.join_carries([]).whole_batches
    assert types.join_carries([free, counter("b")]).whole_batches
    carry, mesh = types.join_carries([free, counter("b")]), sharding.one_device()
    with pytest.raises(UserError, match="accum_steps=2 must be 1"):
        steps.make_train_step(None, TX, mesh, 2, carry)


def test_two_of_one_name_cannot_be_carried():
    with pytest.raises(ValueError, match="one name"):
        types.join_carries([counter("a"), counter("a")])


def test_a_step_hands_over_by_name():
    mesh = sharding.one_device()
    carry = types.join_carries([counter("count"), ema.make_carry(section(), TOTAL)])

    def loss_fn(params, frozen, batch, key_B):
        loss = Loss.of(Mean(params["head"]["scale"] ** 2, jnp.float32(1)))
        handed = {"count": frozen["count"] + 1}  # what was carried so far is seen
        return loss.value(), {"loss": loss, CARRY_INPUT: handed}

    params = {"head": {"scale": jnp.float32(1)}}
    state = states.create(params, TX, mesh, seed=0, carry=carry)
    step = steps.make_train_step(loss_fn, TX, mesh, carry=carry)
    for _ in range(3):
        state, metrics = step(state, sharding.put_batch(ROWS, mesh))
    assert state.extra["count"] == 7  # 0, 1, 3, 7
    assert CARRY_INPUT not in metrics


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(momentum=1.5), r"ema.momentum=1.5 must lie in \[0, 1\]"),
        (dict(schedule="step"), "ema.schedule='step'.*cosine"),
    ],
)
def test_errors_name_the_field(changes, text):
    with pytest.raises(UserError, match=text):
        ema.make_carry(section(**changes), TOTAL)
