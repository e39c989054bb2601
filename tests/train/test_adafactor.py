"""Adafactor is optax's with our schedule and decay; moments can be bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from flax_adapt import defaults
from flax_adapt.base.errors import UserError
from flax_adapt.train import optim, sharding

RNG = np.random.default_rng(0)
# A matrix that is factored, one that is too small, a vector.
SHAPES = {"up/kernel": (16, 8), "down/kernel": (8, 2), "norm/scale": (8,)}
PARAMS = {
    "encoder": {
        outer: {inner: jnp.float32(RNG.standard_normal(shape))}
        for (outer, inner), shape in ((n.split("/"), s) for n, s in SHAPES.items())
    }
}
GRADS = jax.tree.map(lambda leaf: jnp.float32(RNG.standard_normal(leaf.shape)), PARAMS)


def section(**changes):
    usual = dict(lr=0.1, schedule="constant", weight_decay=0.0, freeze=())
    return ConfigDict(defaults.pretrain_optim(**{**usual, **changes}))


def updates(tx, steps=3):
    state, found = tx.init(PARAMS), []
    for _ in range(steps):
        update, state = tx.update(GRADS, state, PARAMS)
        found.append(update)
    return found, state


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"by_scale": False, "clip": 0.5}, {"scale": False, "clipping_threshold": 0.5}),
    ],
)
def test_updates_are_those_of_optax(changes, options):
    own = defaults.adafactor(min_factored=8, **changes)
    found, state = updates(optim.build(section(adafactor=own), 10, PARAMS))
    scale = options.pop("scale", True)
    reference = optax.adafactor(
        0.1, min_dim_size_to_factor=8, multiply_by_parameter_scale=scale, **options
    )
    for ours, theirs in zip(found, updates(reference)[0], strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs
        )
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert 16 * 8 not in sizes  # a row and a column of the matrix
    assert {16, 8} <= {*sizes}


def test_weight_decay_spares_what_adamw_spares():
    own = section(adafactor=defaults.adafactor(), weight_decay=0.5)
    plain = section(adafactor=defaults.adafactor())
    (with_decay, *_), _ = updates(optim.build(own, 10, PARAMS))
    (without, *_), _ = updates(optim.build(plain, 10, PARAMS))
    shrunk = jax.tree.map(lambda a, b: b - a, with_decay, without)["encoder"]
    expected = 0.1 * 0.5 * PARAMS["encoder"]["up"]["kernel"]
    np.testing.assert_allclose(shrunk["up"]["kernel"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(shrunk["norm"]["scale"], np.zeros(8), atol=1e-7)


@pytest.mark.parametrize("own", [None, defaults.adafactor(momentum=0.9)])
def test_first_moments_are_bfloat16_where_asked_and_nothing_else_is(own):
    def dtypes(name):
        tx = optim.build(section(mu_dtype=name, adafactor=own), 10, PARAMS)
        state = updates(tx)[1]
        return [leaf.dtype.name for leaf in jax.tree.leaves(state)]

    assert dtypes("bfloat16").count("bfloat16") == len(SHAPES)
    assert "bfloat16" not in dtypes("float32")


def test_a_bfloat16_first_moment_stays_near_the_float32_one():
    exact = updates(optim.build(section(), 10, PARAMS))[0]
    rounded = updates(optim.build(section(mu_dtype="bfloat16"), 10, PARAMS))[0]
    for ours, theirs in zip(*map(jax.tree.leaves, (rounded, exact)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=1e-4)


def test_the_table_of_parameters_covers_the_state_of_adafactor():
    own = section(adafactor=defaults.adafactor(min_factored=8, momentum=0.9))
    mesh = sharding.make_mesh(dict(data=1, fsdp=8, tensor=1))
    state = optim.build(own, 10, PARAMS).init(PARAMS)
    shardings = jax.tree.leaves(sharding.tree_shardings(state, mesh))
    assert len(shardings) == len(jax.tree.leaves(state))


def test_another_optimizer_refuses_a_bfloat16_moment():
    sgd = dict(momentum=0.9, nesterov=False)
    with pytest.raises(UserError, match="mu_dtype='bfloat16' is of AdamW"):
        optim.build(section(sgd=sgd, mu_dtype="bfloat16"), 10, PARAMS)
