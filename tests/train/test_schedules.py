"""One compiled step serves every learning rate, to the last bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from flax_adapt import defaults
from flax_adapt.train import optim, schedules

# As users compile: the quick ways of tests round a constant rate in other ways.
OLDER = jax.version.__version_info__ < (0, 11)  # see conftest.py
AS_USERS = {"xla_cpu_use_fusion_emitters": True} if OLDER else None
NUM_STEPS = 7
OPTIMIZERS = {
    "adamw": {},
    "layer_decay": dict(layer_decay=0.65, clip_norm=1.0, mu_dtype="bfloat16"),
    "recadam": dict(recadam=dict(gamma=8.0, k=1.5, t0=3.0)),
    "mars": dict(mars_radius=0.3, mars_head_radius=1.0),
    "adafactor": dict(adafactor=defaults.adafactor(min_factored=2, momentum=0.9)),
    "lars": dict(lars=dict(momentum=0.9, trust=1e-3)),
    "sgd": dict(sgd=dict(momentum=0.9, nesterov=True)),
}
RATES = {
    f"{name} after {warmup}": dict(schedule=name, warmup_steps=warmup, lr=lr)
    for name, lr in (("linear", 0.037), ("cosine", 0.11), ("constant", 0.0531))
    for warmup in (0, 3)
}


def section(name, **rate):
    known = dict(weight_decay=0.05, **rate)
    return ConfigDict(defaults.finetune_optim(**{**known, **OPTIMIZERS[name]}))


def start():
    rng = np.random.default_rng(0)

    def layer(inputs, outputs):
        kernel, bias = rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)
        return dict(kernel=jnp.float32(kernel), bias=jnp.float32(bias))

    norm = {"scale": jnp.float32(rng.normal(size=5))}
    encoder = {"block_00": {"a": layer(4, 5), "norm1": norm}, "embed": layer(3, 4)}
    return {"encoder": encoder, "head": layer(5, 2)}


def loss(params, x):
    encoder = params["encoder"]
    for one in (encoder["embed"], encoder["block_00"]["a"]):
        x = jnp.tanh(x @ one["kernel"] + one["bias"][None])
    x = x * encoder["block_00"]["norm1"]["scale"][None]
    head = params["head"]
    return jnp.mean(jnp.square(x @ head["kernel"] + head["bias"][None]))


def train(tx, rate=None):
    """Parameters and state after NUM_STEPS steps."""
    params = start()
    state, step = tx.init(params), make_step(tx.update)
    for number in range(NUM_STEPS):
        x = np.float32(np.random.default_rng(number).normal(size=(6, 3)))
        more = {} if rate is None else {"rate": rate(jnp.int32(number))}
        params, state = step(params, state, x, more)
    return params, state


@functools.cache
def make_step(update):
    def step(params, state, x, more):
        grads = jax.grad(loss)(params, x)
        updates, state = update(grads, state, params, **more)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, compiler_options=AS_USERS)


@functools.cache
def rated(name):
    return optim.build_rated(section(name), NUM_STEPS, start(), ("head/kernel",))


@pytest.fixture(scope="module", autouse=True)
def as_users_compile():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# (optimizer, rate): AdamW at every schedule, the others at one.
PAIRS = [
    (name, rate)
    for name in OPTIMIZERS
    for rate in (RATES if name == "adamw" else ("linear after 3",))
]


@pytest.mark.parametrize(("name", "rate"), PAIRS)
def test_a_rate_as_an_argument_gives_the_bits_of_a_constant(name, rate):
    config = section(name, **RATES[rate])
    assert optim.takes_rate(config, NUM_STEPS)
    constant = optim.build(config, NUM_STEPS, start(), ("head/kernel",))
    expected = train(constant)
    schedule = schedules.schedule(config, NUM_STEPS)
    rate_of = jax.jit(
        lambda step: jnp.asarray(schedule(step), jnp.float32), compiler_options=AS_USERS
    )
    found = train(rated(name), rate_of)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_xla_merges_with_a_constant_rate_keeps_it_as_a_constant():
    for name in OPTIMIZERS:
        merges = name in ("layer_decay", "recadam")
        config = section(name, **RATES["linear after 0"])
        assert optim.takes_rate(config, NUM_STEPS) == (not merges)
