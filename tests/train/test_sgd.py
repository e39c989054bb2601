"""SGD with momentum against NumPy, in the order of torch.optim.SGD."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from flax_adapt import defaults
from flax_adapt.train import optim

NUM_STEPS = 4
START = {"head": {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([0.5, 3.0])}}
GRADS = {"head": {"kernel": np.array([[0.1, 0.4]]), "bias": np.array([-0.2, 0.3])}}


def section(nesterov=False, decay="all"):
    return ConfigDict(
        defaults.pretrain_optim(
            sgd=defaults.sgd(nesterov=nesterov),
            lr=0.5,
            weight_decay=0.1,
            decay=decay,
            freeze=(),
        )
    )


def run(config):
    params, grads = ({"head": {name: jnp.asarray(leaf, jnp.float32)
                               for name, leaf in tree["head"].items()}}
                     for tree in (START, GRADS))  # fmt: skip
    tx = optim.build(config, NUM_STEPS, params)
    state = tx.init(params)
    for _ in range(NUM_STEPS):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params["head"]


def by_numpy(w, g, weight_decay, nesterov):
    """torch.optim.SGD, dampening 0; the rate falls linearly to 0."""
    velocity = np.zeros_like(w)
    for step in range(NUM_STEPS):
        lr = 0.5 * (1 - step / NUM_STEPS)
        change = g + weight_decay * w
        velocity = 0.9 * velocity + change
        w = w - lr * (change + 0.9 * velocity if nesterov else velocity)
    return w


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_at_changing_rates_equal_numpy(nesterov):
    found = run(section(nesterov))
    for name, leaf in found.items():
        expected = by_numpy(START["head"][name], GRADS["head"][name], 0.1, nesterov)
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_only_what_the_table_names_decays():
    found = run(section(decay="finetune"))["bias"]
    expected = by_numpy(START["head"]["bias"], GRADS["head"]["bias"], 0.0, False)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
