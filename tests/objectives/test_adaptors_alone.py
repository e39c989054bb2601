"""The baseline of adaptors under a frozen backbone: losses and updates by NumPy."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults, objectives
from flax_adapt.base import rules
from flax_adapt.defaults import finetuning
from flax_adapt.train import optim, sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

pytestmark = pytest.mark.usefixtures("compile_fast")
ARCH = {**tiny.MODEL, "depth": 1, "adaptor": defaults.adaptor()}
LR, DECAY, CLIP, STEPS = 0.02, 0.1, 0.5, 3


def section():
    """`optim` as the method has it."""
    fields = dict(lr=LR, weight_decay=DECAY, clip_norm=CLIP, warmup_steps=0)
    optimizer = defaults.finetune_optim(**fields, schedule="constant")
    stage = dict(model=defaults.stage_model(), optim=optimizer)
    changed = finetuning.METHODS["adaptors"].fields(stage)
    assert changed["model"]["adaptor"] == defaults.adaptor()
    return ConfigDict(changed["optim"])


@functools.cache
def model_and_start():
    model = tiny.build("classify", ARCH)
    return model, jax.tree.map(np.array, tiny.params_of(model))


def mean_loss(params, batch):
    model, _ = model_and_start()
    logits_BN = model.apply({"params": params}, batch["image"], None)
    log_p_BN = jax.nn.log_softmax(logits_BN)
    return -log_p_BN[np.arange(len(log_p_BN)), batch["label"]].mean()


@functools.cache
def trained():
    """(losses, the last parameters) of the library's own step."""
    model, start = model_and_start()
    mesh = sharding.one_device()
    tx = optim.build(section(), STEPS, start)
    state = states.create(start, tx, mesh, seed=0)
    loss_fn = objectives.build(ConfigDict(defaults.classify()), model)
    loss_fn = optim.stop_frozen(loss_fn, section().freeze)
    step, losses = steps.make_train_step(loss_fn, tx, mesh), []
    for number in range(STEPS):
        state, metrics = step(state, sharding.put_batch(tiny.batch_of(8, number), mesh))
        losses.append(float(metrics["loss"].value()))
    return losses, rules.name_leaves(jax.tree.map(np.array, state.params))


def clipped(grads):
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in grads.values()))
    assert norm > CLIP  # or the test would not see the clipping
    return {name: g * CLIP / norm for name, g in grads.items()}


def by_numpy():
    """AdamW of adaptors and head alone, clipped by the norm of their gradients."""
    params = model_and_start()[1]
    gradient, losses, moments = jax.jit(jax.value_and_grad(mean_loss)), [], {}
    for t in range(1, STEPS + 1):
        loss, grads = gradient(params, tiny.batch_of(8, t - 1))
        losses.append(float(loss))
        grads = clipped({
            name: np.asarray(leaf, np.float64)
            for name, leaf in rules.name_leaves(grads).items()
            if "adaptor" in name or name.startswith("head/")
        })  # fmt: skip

        def update(name, w, grads=grads, t=t):
            if name not in grads:
                return w
            m, v = moments.get(name, (0, 0))
            m = 0.9 * m + 0.1 * grads[name]
            v = 0.999 * v + 0.001 * grads[name] ** 2
            moments[name] = m, v
            adam = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            decay = DECAY * w if name == "head/kernel" else 0
            return np.float32(w - LR * (adam + decay))

        params = rules.map_named(update, params)
    return losses, rules.name_leaves(params)


def test_losses_and_updates_equal_numpy():
    (losses, params), (expected, by_hand) = trained(), by_numpy()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, leaf in by_hand.items():
        np.testing.assert_allclose(params[name], leaf, atol=1e-5, err_msg=name)


def test_adaptors_and_head_train_and_the_backbone_stays_to_the_bit():
    before = rules.name_leaves(model_and_start()[1])
    after = trained()[1]
    moved = {name for name in before if np.any(before[name] != after[name])}
    assert moved == {n for n in before if "adaptor" in n or n.startswith("head/")}
    assert any("adaptor" in name for name in moved)
