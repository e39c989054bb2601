"""LARS by NumPy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults
from flax_adapt.base import checks
from flax_adapt.base.errors import UserError
from flax_adapt.train import lars

RATES = (0.5, 0.25, 0.125)
PARAMS = {"kernel": np.array([[3.0, 0.0], [0.0, 4.0]]), "bias": np.array([1.0, -2.0])}
GRADS = {"kernel": np.array([[1.0, 2.0], [-2.0, 4.0]]), "bias": np.array([0.5, 0.25])}


def section(weight_decay=0.0, momentum=0.9, trust=0.01):
    given = dict(momentum=momentum, trust=trust)
    return ConfigDict(dict(weight_decay=weight_decay, lars=given))


def decays(params):
    return {name: name == "kernel" for name in params}


def run(config, params, grads, count=3):
    """The parameters after some steps of the same gradient, at the rates of RATES."""
    params, grads = (
        {name: jnp.asarray(leaf, jnp.float32) for name, leaf in tree.items()}
        for tree in (params, grads)
    )
    tx = lars.lars(config, lambda step: jnp.array(RATES)[step], decays)
    state = tx.init(params)
    for _ in range(count):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def by_numpy(config, name, w, g):
    """You et al. 2017 in the order of MAE's code: the rate is outside of the momentum."""
    momentum, trust = config.lars.momentum, config.lars.trust
    velocity = 0
    for lr in RATES:
        step = g
        if name == "kernel":
            step = step + config.weight_decay * w
            step = step * trust * np.linalg.norm(w) / np.linalg.norm(step)
        velocity = momentum * velocity + step
        w = w - lr * velocity
    return w


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_at_changing_rates_equal_numpy(weight_decay):
    config = section(weight_decay)
    found = run(config, PARAMS, GRADS)
    for name, leaf in found.items():
        expected = by_numpy(config, name, PARAMS[name], GRADS[name])
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_a_step_by_hand():
    """|w| = |g| = 5, so that g is scaled by the trust alone; the bias is not."""
    found = run(section(trust=0.1), PARAMS, GRADS, count=1)
    expected = PARAMS["kernel"] - 0.5 * 0.1 * GRADS["kernel"]
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["bias"], [0.75, -2.125], rtol=1e-6)


def test_a_kernel_of_zeros_moves_by_the_gradient():
    zeros = {**PARAMS, "kernel": np.zeros((2, 2))}
    found = run(section(), zeros, GRADS, count=1)
    np.testing.assert_allclose(found["kernel"], -0.5 * GRADS["kernel"], rtol=1e-6)


def test_the_published_settings_are_the_defaults():
    given = defaults.probe_optim(900, 0.1)
    assert given["lars"] == dict(momentum=0.9, trust=0.001)
    assert (given["weight_decay"], given["warmup_steps"]) == (0.0, 100)


@pytest.mark.parametrize("changes", [dict(momentum=1.0), dict(trust=0.0)])
def test_a_wrong_field_is_named(changes):
    with pytest.raises(UserError, match=r"optim\.lars: momentum=.* trust="):
        checks.run(lars.ROWS, ConfigDict({"lars": {**tiny.LARS, **changes}}))
