"""LoRA: nothing changes at first, what trains, merging, sharding, reading checkpoints."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny
from support.tiny_lora import logits, noisy, section
from support.tiny_meshes import BOTH, WAYS, mesh_of

from flax_adapt import defaults, objectives, weights
from flax_adapt.base import rules
from flax_adapt.surgery import lora
from flax_adapt.train import optim, sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps
from flax_adapt.weights import lora as pairs

pytestmark = pytest.mark.usefixtures("compile_fast")
MODALITIES = {"image": tiny.MODEL, "text": tiny.TEXT_MODEL}
FRESH = ("head/kernel", "head/bias")


def model_of(modality):
    return tiny.build("classify", MODALITIES[modality])


def batch_of(modality, seed=0):
    if modality == "image":
        return tiny.batch_of(16, seed)
    return tiny.text_batch_of(16, seed, packed=False)


@pytest.mark.parametrize("modality", MODALITIES)
def test_at_first_the_model_is_the_pretrained_one_bit_for_bit(modality):
    model = model_of(modality)
    params = tiny.params_of(model)
    adapted = lora.add(params, section(), jax.random.key(0))
    assert set(adapted) == {*params, "lora"}
    run = jax.jit(functools.partial(logits, model))
    both = [
        run(p, batch_of(modality)) for p in (params, lora.merge(adapted, section()))
    ]
    np.testing.assert_array_equal(*both)


def test_adaptors_start_as_kaiming_and_zeros():
    model = tiny.build("classify", {**tiny.MODEL, "width": 400, "depth": 1})
    leaves = rules.name_leaves(
        lora.add(weights.shapes(model), section(rank=64), jax.random.key(3))
    )
    a, b = pairs.pair_of("encoder/block_00/attention/query/kernel")
    assert (leaves[a].shape, leaves[b].shape) == ((400, 64), (64, 400))
    assert not np.any(leaves[b])
    bound = 400**-0.5
    assert np.abs(leaves[a]).max() <= bound
    assert np.abs(leaves[a]).max() > 0.99 * bound
    np.testing.assert_allclose(np.std(leaves[a]), bound / 3**0.5, rtol=0.02)
    other = leaves[pairs.pair_of("encoder/block_00/attention/value/kernel")[0]]
    assert not np.any(other == leaves[a])


def test_merging_equals_numpy_and_leaves_other_leaves_alone():
    config = section(targets=("query", "down"))
    params = noisy(
        lora.add(tiny.params_of(model_of("image")), config, jax.random.key(0))
    )
    before, after = (
        rules.name_leaves(params),
        rules.name_leaves(lora.merge(params, config)),
    )
    changed = {name for name in after if np.any(after[name] != before[name])}
    assert changed == {
        f"encoder/block_0{block}/{layer}/kernel"
        for block in range(2)
        for layer in ("attention/query", "mlp/down")
    }
    assert set(after) == {name for name in before if not name.startswith("lora/")}
    for name in changed:
        a, b = (np.float64(before[leaf]) for leaf in pairs.pair_of(name))
        expected = before[name] + 3.0 / 2 * a @ b
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)


def test_a_merged_layer_is_the_layer_and_its_low_rank_path():
    """x W + alpha / r (x A) B, without merging, by NumPy."""
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((5, 6)), rng.standard_normal((6, 4))
    a, b = rng.standard_normal((6, 2)), rng.standard_normal((2, 4))
    merged = pairs.merge_kernel(*map(jnp.float32, (kernel, a, b)), 3.0)
    np.testing.assert_allclose(x @ merged, x @ kernel + 1.5 * (x @ a) @ b, rtol=1e-4)


OPTIM = defaults.finetune_optim(lr=1e-2, warmup_steps=0, eps=1e-4, layer_decay=0.9)


@functools.cache
def train(modality, mesh_name="one", accum_steps=1):
    """(parameters before, state after) three steps, all targets adapted."""
    mesh = mesh_of(mesh_name)
    model, config = model_of(modality), section(targets=tuple(lora.TARGETS))
    params = lora.add(tiny.params_of(model), config, jax.random.key(0))
    optimizer = ConfigDict(OPTIM | dict(freeze=(lora.freeze_pattern(FRESH),)))
    tx = optim.build(optimizer, 10, params, FRESH)
    loss_fn = objectives.build(ConfigDict(defaults.classify()), model)
    loss_fn = optim.stop_frozen(lora.merge_in_loss(loss_fn, config), optimizer.freeze)
    state = states.create(params, tx, mesh, seed=0)
    step = steps.make_train_step(loss_fn, tx, mesh, accum_steps)
    for number in range(3):
        batch = sharding.put_batch(batch_of(modality, number), mesh)
        state, _ = step(state, batch)
    return params, state


@pytest.mark.parametrize("modality", MODALITIES)
def test_adaptors_and_head_train_and_all_else_is_frozen(modality):
    before, state = train(modality)
    before, after = rules.name_leaves(before), rules.name_leaves(state.params)
    for name, leaf in before.items():
        trains = name.startswith("lora/") or name in FRESH
        assert np.any(leaf != after[name]) == trains, name
    moments = [name for name in rules.names(state.opt_state) if "/mu/" in name]
    assert (
        len(moments) == 2 + 2 * 6 * 2
    )  # the head, and a and b of 6 layers in 2 blocks


@pytest.mark.parametrize(("mesh", "accum_steps"), WAYS)
def test_it_depends_neither_on_devices_nor_on_parts(mesh, accum_steps):
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    ours, theirs = train("image", mesh, accum_steps)[1], train("image")[1]
    jax.tree.map(close, *(jax.device_get(s.params) for s in (ours, theirs)))


def test_adaptors_are_spread_as_their_kernels_are():
    params = rules.name_leaves(train("image", *BOTH)[1].params)
    for kernel, shapes in {
        "encoder/block_00/attention/query/kernel": ((8, 2), (2, 8)),
        "encoder/block_00/mlp/down/kernel": ((16, 2), (2, 8)),
    }.items():
        found = [params[leaf].addressable_shards[0].data.shape
                 for leaf in pairs.pair_of(kernel)]  # fmt: skip
        assert tuple(found) == shapes


def test_layer_decay_goes_by_the_block_of_an_adaptor():
    params = lora.add(tiny.params_of(model_of("image")), section(), jax.random.key(0))
    table = rules.name_leaves(rules.assign("", optim.layer_rules(0.5, 2), params))
    a, _ = pairs.pair_of("encoder/block_00/attention/query/kernel")
    assert (table[a], table[a.replace("00", "01")], table["head/bias"]) == (
        0.25,
        0.5,
        1,
    )


def test_a_head_and_what_is_new_train_with_the_adaptors():
    names = ("lora/encoder/x/a", "head/bias", "pooler/kernel", "encoder/norm/scale")
    for fresh, frozen in (
        ((), [False, False, True, True]),
        (("pooler/kernel", "head/bias"), [False, False, False, True]),
    ):
        pattern = lora.freeze_pattern(fresh)
        assert [bool(re.fullmatch(pattern, name)) for name in names] == frozen


def test_frozen_leaves_have_no_gradient():
    """Nothing is spent on them: the loss stops their gradient."""
    model, config = model_of("image"), section()
    params = lora.add(tiny.params_of(model), config, jax.random.key(0))
    loss_fn = objectives.build(ConfigDict(defaults.classify()), model, train=False)
    loss_fn = optim.stop_frozen(
        lora.merge_in_loss(loss_fn, config), (lora.freeze_pattern(FRESH),)
    )
    keys_B = jax.random.split(jax.random.key(0), 8)
    grads = jax.jit(jax.grad(lambda *a: loss_fn(*a)[0]))(
        params, {}, tiny.batch_of(), keys_B
    )
    for name, leaf in rules.name_leaves(grads).items():
        learns = name in FRESH or name.endswith("/b")  # b is zero, so a waits a step
        assert bool(np.any(leaf)) == learns, name
